// What the page shows and what is chosen of it.
const DATA = JSON.parse(document.getElementById("data").textContent);
const METRICS = DATA.metrics;
const DASH = "–";
const state = { x: DATA.x, y: DATA.y, colour: "", shape: "", chosen: 0, visible: DATA.rows };
const element = (id) => document.getElementById(id);
const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const has = (row, ...metrics) => metrics.every((name) => row.metrics[name] != null);
const nameOf = (row, name) => String(row.names[name] ?? DASH);
const titleOf = (name) => DATA.facets.find((facet) => facet.name === name)?.title ?? name;
const distinct = (values) => [...new Set(values)];

function significant(value) {
  // three digits, without an exponent
  if (value == null || !isFinite(value)) return DASH;
  const exponent = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.min(12, Math.max(0, 2 - exponent)));
}

function shownOn(axis, row) {
  // with its interval
  const text = (value) => (axis.factor === 100 ? (100 * value).toFixed(2) : significant(value));
  const bounds = axis.low && has(row, axis.low, axis.high) ? ` (${text(row.metrics[axis.low])} to ${text(row.metrics[axis.high])})` : "";
  return text(row.metrics[axis.name]) + bounds;
}

function byNumberOrName(one, other) {
  return isNaN(one) || isNaN(other) ? one.localeCompare(other) : one - other;
}

function fill(select, options, chosen) {
  // options: [value, text]
  select.innerHTML = options.map(([value, text]) => `<option value="${escaped(value)}">${escaped(text)}</option>`).join("");
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}
