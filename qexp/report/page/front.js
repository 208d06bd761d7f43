// The Pareto front, as qexp/report/pareto.py has it.
function paretoFront(points) {
  // {cost, benefit}, from the cheapest to the dearest
  const front = [];
  for (const point of [...points].sort((a, b) => a.cost - b.cost || b.benefit - a.benefit)) {
    const last = front.at(-1);
    if (!last || point.benefit > last.benefit || (point.benefit === last.benefit && point.cost === last.cost)) front.push(point);
  }
  return front;
}

function comparable(rows, names) {
  // groups of rows that have the same values of the names
  const groups = new Map();
  for (const row of rows) {
    const key = JSON.stringify(names.map((name) => nameOf(row, name)));
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return [...groups.values()];
}

function fronts() {
  // of the visible rows on the chosen axes; where more of a cost were better, it would be no cost
  const [x, y] = [METRICS[state.x], METRICS[state.y]];
  if (!x || !y) return [];
  const rows = state.visible.filter((row) => has(row, x.name, y.name));
  const point = (row) => ({ cost: row.metrics[x.name], benefit: row.metrics[y.name], row });
  return comparable(rows, distinct([...x.same, ...y.same])).map((group) => paretoFront(group.map(point)));
}
