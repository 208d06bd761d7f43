// The table of all runs, which DataTables sorts and pages, and the filters that the plots share.
let table = null;
const used = {}; // the values that each facet is narrowed to

async function tableLibrary() {
  const source = new Blob([element("table-library").textContent], { type: "text/javascript" });
  const address = URL.createObjectURL(source);
  try {
    return (await import(address)).default;
  } finally {
    URL.revokeObjectURL(address);
  }
}

function columnOf(column) {
  const place = new Map(DATA.rows.filter((row) => row.status === "finished").map((row, index) => [row.id, index]));
  const best = new Set(column.best);
  const number = (row) => row.metrics[column.key];
  const shown = (row) =>
    place.has(row.id) && column.cells
      ? column.cells[place.get(row.id)]
      : column.metric
        ? significant(number(row))
        : nameOf(row, column.key);
  const isNumber = column.metric || DATA.rows.every((row) => row.names[column.key] != null && !isNaN(row.names[column.key]));
  return {
    title: escaped(column.title),
    name: column.key,
    visible: !column.hidden,
    className: isNumber ? "number" : column.key === "label" ? "choice" : "",
    type: isNumber ? "num" : "string",
    data: null,
    defaultContent: "",
    render: (_, kind, row) => {
      if (kind === "sort" || kind === "type")
        return isNumber ? (number(row) ?? (column.metric ? null : (row.names[column.key] ?? null))) : shown(row);
      return escaped(shown(row));
    },
    createdCell: (cell, _, row) => {
      if (best.has(place.get(row.id))) cell.classList.add("best");
    },
  };
}

async function setUpTable() {
  const DataTable = await tableLibrary();
  const columns = DATA.columns.map(columnOf);
  const several = distinct(DATA.rows.map((row) => row.status)).length > 1;
  if (several)
    columns.push({
      title: "status",
      name: "status",
      data: null,
      render: (_, kind, row) => (kind === "display" ? `<span class="status ${row.status}">${row.status}</span>` : row.status),
    });
  table = new DataTable("#table", {
    data: DATA.rows,
    columns,
    order: [],
    pageLength: 25,
    lengthMenu: [10, 25, 50, 100, 500],
    deferRender: true,
    scrollX: true,
    autoWidth: false,
    layout: {
      topStart: "pageLength",
      topEnd: { buttons: [{ extend: "colvis", text: "Columns" }] },
      bottomStart: "info",
      bottomEnd: "paging",
    },
    createdRow: (line, row) => {
      line.dataset.id = row.id;
    },
    language: {
      info: "_START_ to _END_ of _TOTAL_",
      infoFiltered: "",
      infoEmpty: "no runs",
      zeroRecords: "No run is left; remove a filter.",
      lengthMenu: "_MENU_ per page",
    },
  });
  table.search.fixed("filters", (text, row) => keeps(row));
  element("table").addEventListener("click", (event) => {
    const line = event.target.closest("tbody tr[data-id]");
    if (line) choose(Number(line.dataset.id), true);
  });
  table.on("draw", markChosen);
  element("table-note").textContent = [
    "Bold: the best among rows that can be compared; several if they tie.",
    ...DATA.legend,
    "Click a row for its run.",
  ].join(" · ");
}

function markChosen() {
  for (const line of document.querySelectorAll("#table tbody tr"))
    line.classList.toggle("chosen", line.dataset.id === String(state.chosen));
}

const words = []; // each of which a row's text holds
for (const row of DATA.rows) row.text = `${row.name} ${row.status} ${row.reason} ${Object.values(row.names).join(" ")}`.toLowerCase();

function keeps(row, except) {
  return (
    words.every((word) => row.text.includes(word)) &&
    Object.entries(used).every(([name, values]) => name === except || !values.size || values.has(nameOf(row, name)))
  );
}

function setUpFilters() {
  const facets = DATA.facets.map(
    (facet) => `<details class="facet" data-name="${escaped(facet.name)}"><summary>${escaped(facet.title)}</summary><div></div></details>`,
  );
  const search = '<input type="search" id="words" placeholder="search" aria-label="search">';
  const rest = '<button type="button" id="reset">show all</button><span id="count" role="status"></span>';
  element("filters").innerHTML = search + facets.join("") + rest;
  for (const facet of document.querySelectorAll(".facet")) {
    const name = facet.dataset.name;
    used[name] = new Set();
    facet.addEventListener("change", (event) => {
      used[name][event.target.checked ? "add" : "delete"](event.target.value);
      refresh();
    });
    facet.addEventListener("toggle", () => {
      if (facet.open) for (const other of document.querySelectorAll(".facet[open]")) if (other !== facet) other.open = false;
    });
  }
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".facet")) for (const facet of document.querySelectorAll(".facet[open]")) facet.open = false;
  });
  element("words").addEventListener("input", refresh);
  element("reset").addEventListener("click", () => {
    for (const values of Object.values(used)) values.clear();
    element("words").value = "";
    refresh();
  });
}

function drawFilters() {
  // how many runs each value would leave beside the other filters
  for (const facet of document.querySelectorAll(".facet")) {
    const name = facet.dataset.name,
      counts = new Map();
    for (const row of DATA.rows) counts.set(nameOf(row, name), (counts.get(nameOf(row, name)) ?? 0) + keeps(row, name));
    facet.classList.toggle("used", used[name].size > 0);
    facet.lastElementChild.innerHTML = [...counts.keys()]
      .sort(byNumberOrName)
      .map((value) => {
        const box = `<input type="checkbox" value="${escaped(value)}"${used[name].has(value) ? " checked" : ""}>`;
        return `<label>${box} ${escaped(value)} <span>${counts.get(value)}</span></label>`;
      })
      .join("");
  }
  element("count").textContent = `${state.visible.length} of ${DATA.rows.length} runs`;
}
