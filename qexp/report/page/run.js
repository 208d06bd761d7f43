// Everything about one run: its command, what was measured, its layers, its operators, its notes.
function choose(id, scroll) {
  state.chosen = id;
  element("chosen").value = String(id);
  drawRun();
  markChosen();
  if (scroll) element("run").scrollIntoView({ behavior: "smooth", block: "start" });
}

function commandOf(row) {
  if (row.command)
    return `<div class="copy"><pre class="command">${escaped(row.command)}</pre><button type="button" data-copy>Copy</button></div>`;
  return `<p class="quiet">What tells this row's command apart is not beside its record any more. The sweep's command:</p>
    <div class="copy"><pre class="command">${escaped(row.sweep_command)}</pre><button type="button" data-copy>Copy</button></div>`;
}

function more(title, body, open) {
  return `<details class="more"${open ? " open" : ""}><summary>${title}</summary>${body}</details>`;
}

function plain(titles, rows, numbers) {
  // cells are HTML
  const cells = (row, tag) => row.map((cell, i) => `<${tag}${numbers.includes(i) ? ' class="number"' : ""}>${cell}</${tag}>`).join("");
  const head = `<thead><tr>${cells(titles, "th")}</tr></thead>`;
  const body = rows.map((row) => `<tr>${cells(row, "td")}</tr>`).join("");
  return `<div class="scroll"><table class="plain">${head}<tbody>${body}</tbody></table></div>`;
}

function measuredOf(row) {
  const rows = Object.entries(row.metrics).map(([name, value]) => [
    escaped(name),
    value == null ? "infinite" : escaped(value),
    escaped(METRICS[name].unit),
    row.other_kinds[name] ?? "measured",
  ]);
  return rows.length ? more("All numbers", plain(["metric", "value", "unit", ""], rows, [1])) : "";
}

function operatorsOf(row) {
  if (row.texts.operators == null) return "";
  const { rows, all } = DATA.texts[row.texts.operators];
  const ms = (us) => (us / 1000).toFixed(3),
    mb = (bytes) => (bytes / 1e6).toFixed(3);
  // torch's profiler tells memory and what operators call, those of other engines the numbers they compute in.
  const ofTorch = rows.some((each) => "cpu_memory_bytes" in each);
  const titles = ofTorch
    ? ["operator", "calls", "own ms", "ms", "own MB", "MB"]
    : ["operator", "calls", "ms", "computes in"];
  const cells = rows.map((each) => [
    escaped(each.name),
    each.calls,
    ms(each.self_cpu_time_us),
    ...(ofTorch
      ? [ms(each.cpu_time_us), mb(each.self_cpu_memory_bytes), mb(each.cpu_memory_bytes)]
      : [escaped(each.computes)]),
  ]);
  const rest =
    all > rows.length
      ? `<p class="quiet">The ${rows.length} that take longest of ${all}; all are in operators.txt in the run's folder.</p>`
      : "";
  return more("Operators, by time", plain(titles, cells, ofTorch ? [1, 2, 3, 4, 5] : [1, 2]) + rest);
}

function picturesOf(row) {
  const shown = row.pictures
    .filter((picture) => picture.source)
    .map((picture) => `<img loading="lazy" alt="${escaped(picture.name)}" src="${picture.source}">`);
  const linked = row.pictures
    .filter((picture) => picture.link)
    .map((picture) => `<li><a href="${escaped(encodeURI(picture.link))}">${escaped(picture.name)}</a></li>`);
  if (!row.pictures.length) return "";
  return more(
    `Histograms of ${row.pictures.length} layer${row.pictures.length > 1 ? "s" : ""}`,
    (shown.length ? `<div class="pictures">${shown.join("")}</div>` : "") +
      (linked.length ? `<p class="quiet">Too many for one page; beside it:</p><ul>${linked.join("")}</ul>` : ""),
    true,
  );
}

function machineText(machine) {
  const { versions = {}, ...about } = machine;
  const text = (value) => (Array.isArray(value) ? value.join(", ") : typeof value === "number" ? Number(value.toFixed(2)) : value);
  const entries = Object.entries({ ...about, ...versions }).filter(([, value]) => value != null && String(value) !== "");
  const shown = entries.map(([name, value]) => `<dt>${escaped(name.replace("_", " "))}</dt><dd>${escaped(text(value))}</dd>`);
  return `<dl>${shown.join("")}</dl>`;
}

function whereFrom(row) {
  const taken = row.reused ? [`taken from ${row.reused}`] : [];
  return escaped([row.place, row.created, ...taken, ...(row.artifact ? [`artifact ${row.artifact}`] : [])].filter(Boolean).join(" · "));
}

function plotsOf(row, layers) {
  const plot = (name) => `<div class="plot" id="${name}-plot"></div>`;
  const all = layers && !rounded(layers) ? `<p class="quiet">All ${layers.length} layers compute in fp32.</p>` : "";
  const bits = layers && !all ? more("Layers: bits and what rounding did", plot("layers"), true) : "";
  const title = "Sensitivity: the change of the loss when one layer alone is rounded";
  return all + bits + (row.texts.sensitivity != null ? more(title, plot("sensitivity"), true) : "");
}

function drawRun() {
  const row = DATA.rows[state.chosen];
  const layers = DATA.texts[row.texts.layers];
  const notes = Object.entries(row.notes)
    .map(([name, text]) => `<dt>${escaped(name)}</dt><dd>${escaped(text)}</dd>`)
    .join("");
  for (const plot of document.querySelectorAll("#detail .plot")) Plotly.purge(plot);
  element("detail").innerHTML = `
    <p><span class="status ${row.status}">${row.status}</span> <span class="quiet">${whereFrom(row)}</span></p>
    ${row.reason ? `<p>${escaped(row.reason)}</p>` : ""}
    <p class="quiet">This row alone, again:</p>${commandOf(row)}
    ${plotsOf(row, layers)}
    ${picturesOf(row)}${operatorsOf(row)}${measuredOf(row)}
    ${row.texts.plan != null ? more("Plan of bits", `<pre class="command">${escaped(DATA.texts[row.texts.plan])}</pre>`) : ""}
    ${notes ? more("Notes", `<dl>${notes}</dl>`, true) : ""}
    ${more("Machine and versions", machineText(DATA.machines[row.machine]))}`;
  if (element("layers-plot")) drawLayers(element("layers-plot"), layers);
  if (row.texts.sensitivity != null) drawSensitivity(element("sensitivity-plot"), DATA.texts[row.texts.sensitivity]);
}

document.addEventListener("click", async (event) => {
  if (!event.target.matches("[data-copy]")) return;
  const text = event.target.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(text.textContent);
    event.target.textContent = "Copied";
    setTimeout(() => {
      event.target.textContent = "Copy";
    }, 1500);
  } catch {
    // a browser may not let a file use the clipboard
    getSelection().selectAllChildren(text);
  }
});
