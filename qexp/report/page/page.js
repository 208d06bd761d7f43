// The page: sections set up once, drawn again when filters, theme or width change.
function drawUnfinished() {
  const rows = state.visible.filter((row) => !["finished", "compressed"].includes(row.status));
  element("unfinished").hidden = !DATA.rows.some((row) => !["finished", "compressed"].includes(row.status));
  element("unfinished-list").innerHTML = plain(
    ["", "run", "reason"],
    rows.map((row) => [
      `<span class="status ${row.status}">${row.status}</span>`,
      `<a href="#run" data-run="${row.id}">${escaped(row.name)}</a>`,
      escaped(row.reason),
    ]),
    [],
  );
}

function drawMachines() {
  const counts = DATA.machines.map((_, index) => DATA.rows.filter((row) => row.machine === index).length);
  element("machine-list").innerHTML = DATA.machines
    .map((machine, index) => {
      const title = `${escaped(machine.host ?? "unknown")} · ${counts[index]} run${counts[index] === 1 ? "" : "s"}`;
      return `<article class="card"><h3>${title}</h3>${machineText(machine)}</article>`;
    })
    .join("");
}

function refresh() {
  words.splice(0, words.length, ...element("words").value.toLowerCase().split(/\s+/).filter(Boolean));
  state.visible = DATA.rows.filter((row) => keeps(row));
  table.draw();
  drawFilters();
  drawPareto();
  if (!element("curves").hidden) drawCurves();
  drawUnfinished();
}

function drawAgain() {
  drawPareto();
  if (!element("curves").hidden) drawCurves();
  drawRun();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-run]");
  if (!link) return;
  event.preventDefault();
  choose(Number(link.dataset.run), true);
});

setUpFilters();
setUpPareto();
await setUpTable();
const several = distinct(DATA.rows.map((row) => row.place.split("/")[0])).length > 1;
fill(
  element("chosen"),
  DATA.rows.map((row) => [
    String(row.id),
    `${several ? row.place : row.place.split("/").at(-1)}: ${row.name}${row.status === "finished" ? "" : ` (${row.status})`}`,
  ]),
);
element("chosen").addEventListener("change", () => choose(Number(element("chosen").value)));
drawMachines();
setUpCurves();
refresh();
const telling = [
  (row) => row.pictures.length && row.texts.sensitivity != null,
  (row) => row.texts.sensitivity != null,
  (row) => row.pictures.length,
  (row) => rounded(DATA.texts[row.texts.layers] ?? []),
];
choose(
  Math.max(
    0,
    ...telling
      .map((tells) => DATA.rows.findIndex(tells))
      .filter((index) => index >= 0)
      .slice(0, 1),
  ),
);
for (const query of [dark, narrow]) query.addEventListener("change", drawAgain);
document.body.dataset.ready = "true";
window.qexp = { state, fronts, choose }; // for tests, and for the curious
