// The layers of one run: what rounding did to each, how many bits each has, and what each is worth to the network.
const rounded = (layers) => layers.some((layer) => layer.bits.some((bits) => bits < 32));
const SIGNALS = ["weights", "input", "result, against fp32"];

function layerAxis(names) {
  return axisLayout({ type: "category", categoryarray: names, tickangle: -90, tickfont: { size: 11 }, automargin: true });
}

function drawLayers(plot, layers) {
  const names = layers.map((layer) => layer.layer);
  const lines = SIGNALS.map((title, part) => ({
    type: "scatter",
    mode: "lines+markers",
    name: `signal to noise: ${title}`,
    x: names,
    y: layers.map((layer) => layer.sqnr_db[part]),
    line: { color: COLOURS[part], width: 1.5 },
    marker: { size: 6, symbol: SHAPES[part] },
    yaxis: "y2",
    hovertemplate: `%{x}<br>${title}: %{y:.1f} dB<extra></extra>`,
  })).filter((line) => line.y.some((value) => value != null));
  const bits = ["weights", "input"].map((title, part) => ({
    type: "bar",
    name: `bits: ${title}`,
    x: names,
    y: layers.map((layer) => layer.bits[part]),
    marker: { color: COLOURS[part] },
    text: layers.map((layer) => {
      const size = `${layer.parameters.toLocaleString("en")} parameters, ${significant(layer.macs / 1e6)} million MACs`;
      return `${layer.kind}, ${layer.formats[part]}, ${size}`;
    }),
    textposition: "none",
    hovertemplate: `<b>%{x}</b><br>${title}: %{y} bits<br>%{text}<extra></extra>`,
  }));
  const axes = { xaxis: layerAxis(names), yaxis: axisLayout({ title: { text: "bits" }, domain: lines.length ? [0, 0.38] : [0, 1] }) };
  if (lines.length)
    axes.yaxis2 = axisLayout({ title: { text: "signal to noise, dB" }, domain: [0.46, 1], anchor: "x", rangemode: "tozero" });
  Plotly.newPlot(plot, [...lines, ...bits], layout({ ...axes, barmode: "group", ...below(names) }), settings());
}

function drawSensitivity(plot, table) {
  const names = distinct(table.map((row) => row.layer));
  const widths = distinct(table.map((row) => JSON.stringify(row.bits)))
    .map(JSON.parse)
    .sort((one, other) => other[0] + other[1] - one[0] - one[1]);
  const lines = widths.map((bits, index) => {
    const rows = table.filter((row) => String(row.bits) === String(bits));
    const name = bits[0] === bits[1] ? `${bits[0]} bits` : `w${bits[0]}a${bits[1]}`;
    return {
      type: "bar",
      name,
      x: rows.map((row) => row.layer),
      y: rows.map((row) => (row.loss_change_nats > 0 ? row.loss_change_nats : null)),
      marker: { color: COLOURS[index % COLOURS.length] },
      text: rows.map((row) => (row.sqnr_db == null ? "" : `logits: ${row.sqnr_db.toFixed(1)} dB`)),
      textposition: "none",
      hovertemplate: `<b>%{x}</b>, ${name}<br>loss changes by %{y:.3g} nats<br>%{text}<extra></extra>`,
    };
  });
  const up = axisLayout({ type: "log", title: { text: "change of the loss, nats" }, exponentformat: "power", dtick: 1 });
  Plotly.newPlot(plot, lines, layout({ xaxis: layerAxis(names), yaxis: up, barmode: "group", ...below(names) }), settings());
}

function below(names) {
  // a legend above, since the names of layers stand below
  return {
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
    margin: { l: 60, r: 15, t: 40, b: 60 },
    showlegend: names.length > 0,
  };
}
