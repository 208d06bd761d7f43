// Latency against batch size, image size or threads: a line per combination of everything else.
const ACROSS = { batch_size: "batch size", image_size: "image size", threads: "threads" };

function linesOf(across, up) {
  const names = DATA.facets.map((facet) => facet.name).filter((name) => !["status", "sweep", "kind", "bits", across].includes(name));
  const rows = state.visible.filter((row) => has(row, up) && !isNaN(row.names[across]));
  const groups = comparable(rows, ["model", "label", "engine", ...names]);
  const apart = names.filter((name) => distinct(rows.map((row) => nameOf(row, name))).length > 1);
  return groups
    .filter((group) => distinct(group.map((row) => row.names[across])).length > 1)
    .map((group) => ({
      name: apart
        .map((name) =>
          ["model", "label", "engine"].includes(name) ? nameOf(group[0], name) : `${titleOf(name)} ${nameOf(group[0], name)}`,
        )
        .join(" · "),
      rows: [...group].sort((one, other) => one.names[across] - other.names[across]),
    }));
}

function drawCurves() {
  const [across, up] = [element("curve-x").value, element("curve-y").value];
  const lines = linesOf(across, up).map((line, index) => ({
    type: "scatter",
    mode: "lines+markers",
    name: line.name || "runs",
    x: line.rows.map((row) => row.names[across]),
    y: line.rows.map((row) => row.metrics[up]),
    error_y: bars(line.rows, METRICS[up]),
    customdata: line.rows.map((row) => row.id),
    line: { color: COLOURS[index % COLOURS.length], width: 1.5 },
    marker: { symbol: SHAPES[Math.floor(index / COLOURS.length) % SHAPES.length], size: 8 },
    hovertemplate: `<b>${escaped(line.name)}</b><br>${ACROSS[across]} %{x}: %{y:.4g}<extra></extra>`,
  }));
  const ticks = distinct(lines.flatMap((line) => line.x)).sort((one, other) => one - other);
  const xaxis = axisLayout({ type: "log", title: { text: ACROSS[across] }, tickvals: ticks, ticktext: ticks.map(String) });
  const yaxis = scaleOf(
    lines.flatMap((line) => line.y),
    true,
    METRICS[up].title,
  );
  const plot = element("curves-plot");
  Plotly.react(plot, lines, layout({ xaxis, yaxis }), settings());
  if (!plot.listening) plot.on("plotly_click", (event) => choose(event.points[0].customdata, true));
  plot.listening = true;
}

function setUpCurves() {
  const possible = Object.keys(ACROSS).filter((across) => DATA.curves.some((up) => linesOf(across, up).length));
  element("curves").hidden = !possible.length;
  if (!possible.length) return false;
  fill(
    element("curve-x"),
    possible.map((name) => [name, ACROSS[name]]),
  );
  fill(
    element("curve-y"),
    DATA.curves.map((name) => [name, METRICS[name].title]),
  );
  for (const id of ["curve-x", "curve-y"]) element(id).addEventListener("change", drawCurves);
  return true;
}
