// Plots in the page's colours, light or dark, wide or narrow.
const COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#ec4899", "#84cc16", "#a16207", "#94a3b8"];
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "triangle-down"];
const settings = () => ({
  responsive: true,
  displaylogo: false,
  displayModeBar: !narrow.matches,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
});
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 700px)");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axisLayout(more) {
  return { gridcolor: css("--grid"), zerolinecolor: css("--grid"), linecolor: css("--line"), automargin: true, ...more };
}

function layout(more) {
  const legend = narrow.matches
    ? { orientation: "h", y: -0.28, x: 0, xanchor: "left", font: { size: 11 } }
    : { x: 1.01, y: 1, xanchor: "left" };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 13 },
    hovermode: "closest",
    margin: { l: narrow.matches ? 50 : 70, r: 15, t: 30, b: 55 },
    legend,
    showlegend: true,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--quiet"), activecolor: css("--accent") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") }, align: "left" },
    ...more,
  };
}

function scaleOf(values, log, title) {
  // a logarithmic axis with ticks that people can read
  const shown = values.filter((value) => value > 0);
  if (!log || shown.length < values.length) return axisLayout({ title: { text: title } });
  const [least, most] = [Math.min(...shown), Math.max(...shown)].map(Math.log10);
  const steps = most - least < 2.5 ? [1, 2, 5] : [1];
  const tickvals = [];
  for (let decade = Math.floor(least) - 2; decade <= most + 2; decade++) tickvals.push(...steps.map((step) => step * 10 ** decade));
  const ticktext = tickvals.map((value) => String(Number(value.toPrecision(1))));
  return axisLayout({ title: { text: title }, type: "log", tickvals, ticktext });
}

function style(values, value, among) {
  return among[Math.max(0, values.indexOf(value)) % among.length];
}
