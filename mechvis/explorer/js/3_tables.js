// Tables: sort by a heading, keep the rows that hold some words, take what is shown away.

function sortTable(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const numeric = heading.classList.contains("number");
  const down = heading.getAttribute("aria-sort") === "descending" || (!numeric && heading.getAttribute("aria-sort") !== "ascending");
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "ascending" : "descending");
  const key = (row) => {
    const cell = row.cells[column];
    if ("sort" in cell.dataset) return Number(cell.dataset.sort);
    return numeric ? NaN : cell.textContent;
  };
  const compare = ([x], [y]) => {
    // Cells without a value stay at the end in both directions.
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return down ? order : -order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].map((row) => [key(row), row]).sort(compare).map(([, row]) => row));
}

// Names of heads in the first column lead to what they look at.
function linkHeads(table, attention, lookAt) {
  for (const row of table.tBodies[0].rows) {
    const cell = row.cells[0], found = cell && /^L(\d+)H(\d+)$/.exec(cell.textContent);
    if (!found) continue;
    const layer = attention.layers.indexOf(Number(found[1])), head = Number(found[2]);
    if (layer < 0 || head >= attention.heads[layer]) continue;
    const link = button(cell.textContent, "What this head looks at", () => lookAt(null, { overlay: "attention", layer, head }));
    link.className = "link";
    cell.replaceChildren(link);
  }
}

function dressTable(box) {
  const table = box.querySelector("table");
  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button").addEventListener("click", () => sortTable(table, heading.cellIndex));
  }
  const tools = make("div", "tools"), filter = make("input", "filter"), count = make("span", "soft");
  filter.type = "search";
  filter.placeholder = "rows that hold ...";
  filter.setAttribute("aria-label", "show only rows that hold");
  filter.spellcheck = false;
  const all = table.tBodies[0].rows.length;
  count.setAttribute("role", "status");
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    let left = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !!wanted && ![...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
      left += row.hidden ? 0 : 1;
    }
    count.textContent = wanted ? left + " of " + all + " rows" : "";
  });
  const name = (box.closest("section").querySelector("h3, h2") || {}).textContent || "table";
  const take = button("CSV", "Save the rows that are shown as a CSV file", () => {
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const text = (cell) => (cell.dataset && "sort" in cell.dataset ? cell.dataset.sort : cell.textContent);
    saveCsv(name, [[...table.tHead.rows[0].cells].map((cell) => cell.textContent), ...rows.map((row) => [...row.cells].map(text))]);
  });
  if (all > 8) tools.append(filter, count);
  tools.append(take);
  box.before(tools);
}

function dressFigure(figure) {
  const picture = figure.querySelector("img"), tools = make("div", "tools");
  const name = (figure.querySelector("figcaption") || {}).textContent || "figure";
  if (picture.src.startsWith("data:image/svg+xml;base64,")) {
    tools.append(button("SVG", "Save as SVG", () => save(fileName(name, "svg"), new Blob([bytesOf(picture.src.split(",")[1])], { type: "image/svg+xml" }))));
  }
  tools.append(button("PNG", "Save as PNG", () => savePicture(name, picture.src, picture.src.startsWith("data:image/svg") ? 2 : 1)));
  figure.append(tools);
}

function dressChart(figure) {
  const drawing = figure.querySelector("svg"), tools = make("div", "tools"), name = figure.closest("section").querySelector("h2").textContent;
  tools.append(button("SVG", "Save as SVG", () => saveSvg(name, drawing)), button("PNG", "Save as PNG", () => saveSvgAsPng(name, drawing)));
  figure.append(tools);
}
