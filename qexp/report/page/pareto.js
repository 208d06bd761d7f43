// Accuracy, or another benefit, against a cost: a point per run, with intervals, and the fronts.
function hover(row) {
  const axes = distinct([state.x, state.y, ...DATA.hover])
    .map((name) => METRICS[name])
    .filter((axis) => has(row, axis.name));
  const lines = axes.map((axis) => `${escaped(axis.title)}: ${shownOn(axis, row)}`);
  return [`<b>${escaped(row.name)}</b>`, ...lines, row.noisy ? "noisy" : ""].filter(Boolean).join("<br>");
}

function bars(rows, axis, colour) {
  if (!rows.some((row) => has(row, axis.name, axis.low || axis.name, axis.high || axis.name)) || !axis.low) return undefined;
  const away = (bound) => rows.map((row) => (has(row, bound) ? axis.factor * Math.abs(row.metrics[bound] - row.metrics[axis.name]) : 0));
  return {
    type: "data",
    symmetric: false,
    array: away(axis.high),
    arrayminus: away(axis.low),
    thickness: 1,
    width: 3,
    color: colour && colour + "80",
  };
}

function drawPareto() {
  const [x, y] = [METRICS[state.x], METRICS[state.y]];
  element("pareto").hidden = !(x && y);
  if (!x || !y) return;
  const rows = state.visible.filter((row) => has(row, x.name, y.name));
  const [colours, shapes] = [state.colour, state.shape].map((name) =>
    distinct(DATA.rows.map((row) => nameOf(row, name))).sort(byNumberOrName),
  );
  const both = distinct([state.colour, state.shape].filter(Boolean));
  const traces = comparable(rows, both)
    .map((group) => [group, style(colours, nameOf(group[0], state.colour), COLOURS)])
    .map(([group, colour]) => ({
      mode: "markers",
      type: "scatter",
      name: both.map((name) => nameOf(group[0], name)).join(" · ") || "runs",
      x: group.map((row) => x.factor * row.metrics[x.name]),
      y: group.map((row) => y.factor * row.metrics[y.name]),
      error_x: bars(group, x, colour),
      error_y: bars(group, y, colour),
      text: group.map(hover),
      customdata: group.map((row) => row.id),
      hovertemplate: "%{text}<extra></extra>",
      marker: {
        color: colour,
        symbol: style(shapes, nameOf(group[0], state.shape), SHAPES),
        size: 10,
        opacity: 0.85,
        line: { width: 1, color: css("--card") },
      },
    }))
    .sort((one, other) => one.name.localeCompare(other.name));
  const lines = fronts()
    .filter((front) => distinct(front.map((point) => point.cost)).length > 1)
    .map((front, index) => ({
      mode: "lines",
      type: "scatter",
      name: "Pareto front",
      legendgroup: "front",
      showlegend: index === 0,
      hoverinfo: "skip",
      x: front.map((point) => x.factor * point.cost),
      y: front.map((point) => y.factor * point.benefit),
      line: { shape: "hv", color: css("--quiet"), width: 1.5, dash: "dot" },
    }));
  const across = scaleOf(
    rows.map((row) => row.metrics[x.name]),
    element("log").checked,
    x.title,
  );
  const plot = element("pareto-plot");
  Plotly.react(plot, [...lines, ...traces], layout({ xaxis: across, yaxis: axisLayout({ title: { text: y.title } }) }), settings());
  if (!plot.listening) plot.on("plotly_click", (event) => event.points[0].customdata != null && choose(event.points[0].customdata, true));
  plot.listening = true;
  note(x, y, rows);
}

function note(x, y, rows) {
  const finished = state.visible.filter((row) => row.status === "finished");
  const same = { batch_size: "batch size", threads: "threads", machine: "machine", device: "device", data: "data", image_size: "image size" };
  const apart = distinct([...x.same, ...y.same]).filter((name) => distinct(rows.map((row) => nameOf(row, name))).length > 1);
  const missing = finished.length - rows.length;
  element("pareto-note").textContent = [
    "Bars are 95 % intervals where they were measured. Click a point for its run.",
    apart.length
      ? `Each ${apart.map((name) => same[name]).join(" and ")} has a front of its own, since others cannot be compared with it.`
      : "",
    missing ? `${missing} finished run${missing > 1 ? "s have" : " has"} no values on these axes: the run's notes say why.` : "",
  ]
    .filter(Boolean)
    .join(" ");
}

function setUpPareto() {
  fill(
    element("x"),
    DATA.costs.map((name) => [name, METRICS[name].title]),
    state.x,
  );
  fill(
    element("y"),
    DATA.benefits.map((name) => [name, METRICS[name].title]),
    state.y,
  );
  const names = DATA.facets.map((facet) => facet.name).filter((name) => name !== "status");
  const options = [["", "the same"], ...names.map((name) => [name, titleOf(name)])];
  const others = ["label", "model", "device", "engine", "batch_size"].filter((name) => names.includes(name) && name !== DATA.colour);
  [state.colour, state.shape] = [DATA.colour || others.shift() || "", others.shift() || ""];
  fill(element("colour"), options, state.colour);
  fill(element("shape"), options, state.shape);
  for (const id of ["x", "y", "colour", "shape"])
    element(id).addEventListener("change", () => {
      state[id] = element(id).value;
      drawPareto();
    });
  element("log").addEventListener("change", drawPareto);
}
