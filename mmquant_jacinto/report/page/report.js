"use strict";
const { layers } = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("layer-table");
const detail = document.getElementById("detail");

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return column === 0 ? cell.textContent : null;
}

// Rows without a value come last, whichever way the others are sorted.
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? a.localeCompare(b) : a - b;
  return order * direction;
}

function sortBy(header) {
  const column = header.cellIndex;
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const direction = ascending ? 1 : -1;
  rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), direction));
  body.append(...rows);
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawBars(title, low, high, series) {
  const svg = element("svg", { viewBox: "0 0 380 150", role: "img" });
  svg.append(element("text", { x: 0, y: 12, "font-size": 12 }, title));
  const tallest = Math.max(1, ...series.flatMap((one) => one.bars.map((bar) => bar[1])));
  const floor = Math.min(0, ...series.flatMap((one) => one.bars.map((bar) => bar[0])));
  const scale = 100 / (tallest - floor);
  series.forEach((one) => {
    const width = 370 / one.bars.length;
    one.bars.forEach((bar, index) => svg.append(element("rect", {
      x: 5 + index * width, width: Math.max(0.5, width * 0.9),
      y: 125 - (bar[1] - floor) * scale, height: Math.max(0, (bar[1] - bar[0]) * scale),
      fill: one.color, "fill-opacity": one.opacity,
    })));
  });
  svg.append(element("text", { x: 5, y: 145, "font-size": 11 }, low));
  svg.append(element("text", { x: 375, y: 145, "font-size": 11, "text-anchor": "end" }, high));
  return svg;
}

function drawHistogram(title, histogram) {
  // Roots, so that tails can be seen.
  const bars = (counts) => counts.map((count) => [0, Math.sqrt(count)]);
  return drawBars(title, histogram.low.toPrecision(3), histogram.high.toPrecision(3), [
    { bars: bars(histogram.float_counts), color: "#14569c", opacity: 0.55 },
    { bars: bars(histogram.quantized_counts), color: "#d9822b", opacity: 0.55 },
  ]);
}

function openLayer(row) {
  for (const other of table.tBodies[0].rows) other.classList.toggle("open", other === row);
  const layer = layers[Number(row.dataset.layer)];
  detail.replaceChildren();
  detail.hidden = false;
  const heading = document.createElement("h3");
  heading.textContent = layer.name;
  detail.append(heading);
  const activation = layer.activation;
  detail.append(drawHistogram("output: float blue, on its grid orange", activation.histogram));
  if (layer.weight) {
    detail.append(drawHistogram("weight: float blue, integer orange", layer.weight.histogram));
    const bars = layer.weight.channel_range;
    detail.append(drawBars("range of each weight channel", "first channel", "last channel",
      [{ bars: bars, color: "#14569c", opacity: 0.7 }]));
  }
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = "Output: grid " + activation.range.map((x) => x.toPrecision(3)).join(" to ")
    + ", step " + activation.scale.toPrecision(3) + ", " + activation.format + "; seen "
    + activation.seen.map((x) => x.toPrecision(3)).join(" to ") + "."
    + (layer.weight ? " Weight: " + layer.weight.elements + " elements, steps "
      + layer.weight.scale.map((x) => x.toPrecision(3)).join(" to ") + ", "
      + layer.weight.format + "." : "") + " Histograms show square roots of counts.";
  detail.append(note);
}

function openFromHash() {
  const row = location.hash && document.getElementById(location.hash.slice(1));
  if (!row || row.dataset.layer === undefined) return;
  openLayer(row);
  row.scrollIntoView({ block: "center" });
}

function filterRows(text) {
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    row.hidden = !row.cells[0].textContent.includes(text);
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = shown + " of " + layers.length + " layers";
}

table.tHead.addEventListener("click", (event) => {
  const header = event.target.closest("th");
  if (header) sortBy(header);
});
table.tBodies[0].addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) openLayer(row);
});
document.getElementById("filter").addEventListener("input", (event) => {
  filterRows(event.target.value);
});
window.addEventListener("hashchange", openFromHash);
filterRows("");
openFromHash();
