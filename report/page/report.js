"use strict";
const data = JSON.parse(document.getElementById("page-data").textContent);
const names = data.names;

function element(tag, attributes = {}, content = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = content;
  return made;
}

function shape(tag, attributes, content = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (content) made.textContent = content;
  return made;
}

// Run `act` when an element first comes near the part of the page that is seen.
const waiting = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    waiting.get(entry.target)();
    waiting.delete(entry.target);
  }
}, { rootMargin: "300px" });
function whenSeen(target, act) {
  waiting.set(target, act);
  watcher.observe(target);
}

// Paper does not scroll: draw everything before the page is printed or saved as PDF.
window.addEventListener("beforeprint", () => {
  for (const [target, act] of waiting) {
    watcher.unobserve(target);
    act();
  }
  waiting.clear();
});

// ---------------------------------------------------------------------------------------------------------- images

function boundsOf(image, object, detection) {
  const boxes = [];
  for (const entry of image.truth) if (entry[0] === object) boxes.push(entry[2]);
  for (const entry of image.found) if (entry[0] === detection) boxes.push(entry[2]);
  const [width, height] = image.size;
  if (!boxes.length) return [0, 0, width, height];
  const low = [0, 1].map(i => Math.min(...boxes.map(box => box[i])));
  const high = [0, 1].map(i => Math.max(...boxes.map(box => box[i] + box[i + 2])));
  const side = Math.max(Math.min(width, height) / 4, 2.2 * Math.max(high[0] - low[0], high[1] - low[1]));
  const begin = [0, 1].map(i => Math.max(0, (low[i] + high[i] - side) / 2));
  const end = [0, 1].map(i => Math.min(image.size[i], (low[i] + high[i] + side) / 2));
  return [begin[0], begin[1], end[0] - begin[0], end[1] - begin[1]];
}

function canvas(image, view, source, place) {
  const made = shape("svg", { viewBox: view.join(" "), role: "img", "aria-label": image.file });
  if (source) {
    const [x, y, width, height] = place;
    made.append(shape("image", { href: source, x, y, width, height, preserveAspectRatio: "none" }));
  }
  return made;
}

function outlineOf(entry, css) {
  const [x, y, width, height] = entry[2];
  return entry[5] ? shape("path", { d: entry[5], class: css })
                  : shape("rect", { x, y, width, height, class: css + " box" });
}

const LABEL = 11;  // height of a label's letters, in pixels of the screen

function labelOf(entry, label, view, size) {
  const [x, y, width] = entry[2];
  const right = x + label.length * size * 0.6 > view[0] + view[2];
  return shape("text", {
    x: right ? Math.min(x + width, view[0] + view[2]) : Math.max(x, view[0]), y: Math.max(y - size / 4, view[1] + size),
    "font-size": size, "text-anchor": right ? "end" : "start",
  }, label);
}

// Draw entries [entry, css, label]: first a pale line below each on a photo, then all outlines, then all labels.
function drawEntries(made, entries, view, width) {
  const size = LABEL * Math.max(view[2] / width, view[3] / 420);  // 420: the style's largest height

  if (made.querySelector("image")) made.append(...entries.map(([entry]) => outlineOf(entry, "halo")));
  made.append(...entries.map(([entry, css]) => outlineOf(entry, css)));
  made.append(...entries.filter(([, , label]) => label).map(([entry, , label]) => labelOf(entry, label, view, size)));
}

function truthLabel(entry) { return names[entry[1]]; }
function foundLabel(entry) { return names[entry[1]] + " " + entry[4].toFixed(2); }

const MOST_LABELS = 12;  // in an image; where there are more entries, only the wrong ones are labelled

function fillPair(figure, image) {
  const view = [0, 0, ...image.size];
  const found = image.found.filter(entry => entry[3] >= 0);
  const width = Math.max(figure.clientWidth / 2, 100);
  const left = canvas(image, view, image.src, view), right = canvas(image, view, image.src, view);
  drawEntries(left, image.truth.map(entry => {
    if (entry[4]) return [entry, "crowd", ""];
    if (!entry[3]) return [entry, "wrong", "✗ " + truthLabel(entry)];
    return [entry, "right", image.truth.length > MOST_LABELS ? "" : truthLabel(entry)];
  }), view, width);
  drawEntries(right, found.map(entry => entry[3] ? [entry, "right", found.length > MOST_LABELS ? "" : foundLabel(entry)]
                                                 : [entry, "wrong", "✗ " + foundLabel(entry)]), view, width);
  const sides = element("div", { class: "sides" });
  sides.append(left, right);
  figure.prepend(sides);
}

function fillZoom(figure, image, object, detection) {
  const number = Number(figure.dataset.crop ?? -1);
  const whole = [0, 0, ...image.size];
  const [view, source, place] = number >= 0 ? [data.crops[number][0], data.crops[number][1], data.crops[number][0]]
    : [boundsOf(image, object, detection), image.src, whole];
  const made = canvas(image, view, source, place);
  drawEntries(made, [
    ...image.truth.filter(entry => entry[0] === object).map(entry => [entry, "truth", ""]),
    ...image.found.filter(entry => entry[0] === detection).map(entry => [entry, "found", ""]),
  ], view, 100);
  figure.prepend(made);
}

function prepareShot(figure) {
  const [number, object, detection] = figure.dataset.shot.split(",").map(Number);
  const image = data.images[number];
  if (!image) return;
  whenSeen(figure, () => figure.classList.contains("pair") ? fillPair(figure, image)
                                                           : fillZoom(figure, image, object, detection));
}
document.querySelectorAll(".shot").forEach(prepareShot);

// ---------------------------------------------------------------------------------------------------------- tables

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const head = heads[column];
  const isText = head.classList.contains("text");
  const down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : !isText;
  heads.forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const compare = isText ? (a, b) => a.localeCompare(b) : (a, b) => a - b;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (down ? -1 : 1) * compare(valueOf(a, column), valueOf(b, column)));
  table.tBodies[0].append(...rows);
}

document.querySelectorAll("table.sortable").forEach(table => {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
});

document.querySelectorAll("input[data-table]").forEach(input => {
  const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
  const status = document.querySelector(`[data-count="${input.dataset.table}"]`);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    status.textContent = wanted ? `${shown} of ${rows.length}` : "";
  });
});

const suspectKind = document.getElementById("suspect-kind");
if (suspectKind) suspectKind.addEventListener("change", () => {
  const entries = [...document.querySelectorAll(".suspects li")];
  for (const entry of entries) entry.hidden = suspectKind.value !== "" && entry.dataset.kindOfSuspect !== suspectKind.value;
  document.getElementById("suspect-count").textContent = `${entries.filter(e => !e.hidden).length} of ${entries.length}`;
});

// -------------------------------------------------------------------------------------------------------- matrices

function showBehind(frame, content, row, column) {
  const panel = frame.nextElementSibling;
  const cell = content.cells.find(each => each[0] === row && each[1] === column);
  const [number, shots] = cell ? [cell[2], cell[3]] : [0, []];
  const nothing = content.names.length - 1;
  const words = column === nothing ? `${content.names[row]}: missed` : row === nothing
    ? `${content.names[column]}: detected where nothing is annotated`
    : `${content.names[row]} detected as ${content.names[column]}`;
  panel.replaceChildren(element("p", {}, `${words}: ${number}` + (shots.length < number
    ? `, ${shots.length} of them shown; errors.csv lists all that are wrong` : "")));
  const grid = element("div", { class: "shots" });
  for (const shot of shots) {
    const image = data.images[shot[0]];
    const figure = element("figure", { class: "shot zoom", "data-shot": shot.join(",") });
    const truth = image.truth.find(entry => entry[0] === shot[1]), found = image.found.find(entry => entry[0] === shot[2]);
    const parts = [truth && "annotated " + truthLabel(truth), found && "detected " + foundLabel(found)].filter(Boolean);
    figure.append(element("figcaption", {}, `${parts.join(", ")} – ${image.file}`));
    grid.append(figure);
    prepareShot(figure);
  }
  panel.append(grid);
}

function choose(frame, content, cell) {
  frame.querySelectorAll('[aria-selected="true"]').forEach(each => each.removeAttribute("aria-selected"));
  cell.setAttribute("aria-selected", "true");
  if (content.pictured) showBehind(frame, content, Number(cell.dataset.row), Number(cell.dataset.column));
}

function buildMatrix(frame) {
  const content = data.matrices[frame.dataset.matrix];
  content.pictured = frame.dataset.matrix.startsWith("confusion");
  const size = content.names.length;
  const numbers = new Map(content.cells.map(([row, column, number]) => [row * size + column, number]));
  const used = content.names.map((_, k) => k).filter(k => content.cells.some(([row, column]) => row === k || column === k));
  const totals = new Map();
  for (const [row, , number] of content.cells) totals.set(row, (totals.get(row) ?? 0) + number);
  if (used.length > 25) frame.classList.add("large");
  const table = element("table", { role: "grid" });
  const head = table.createTHead().insertRow();
  head.append(element("th", {}, content.corner));
  for (const k of used) head.append(element("th", { class: "name", scope: "col", title: content.names[k] }, content.names[k]));
  const body = table.createTBody();
  for (const row of used) {
    const line = body.insertRow();
    line.append(element("th", { scope: "row", title: content.names[row] }, content.names[row]));
    const total = content.pictured ? totals.get(row) : numbers.get(row * size + row);
    for (const column of used) {
      const number = numbers.get(row * size + column);
      const cell = element("td", { "data-row": row, "data-column": column, role: "gridcell" }, number ?? "");
      if (number) {
        const share = Math.sqrt(number / total);
        cell.style.setProperty("--share", share.toFixed(2));
        if (share > 0.6) cell.classList.add("strong");
        cell.title = `${content.names[row]} / ${content.names[column]}: ${number}`;
        if (content.pictured) cell.dataset.examples = "";
      }
      line.append(cell);
    }
  }
  if (!used.length) return () => {};
  table.querySelector("td").tabIndex = 0;
  frame.append(table);
  const panel = element("div", { class: "behind", "aria-live": "polite" });
  frame.after(panel);
  const at = (row, column) => body.rows[row]?.cells[column + 1];
  table.addEventListener("click", event => {
    const cell = event.target.closest("td");
    if (cell) choose(frame, content, cell);
  });
  table.addEventListener("keydown", event => {
    const cell = event.target.closest("td");
    if (!cell) return;
    const [row, column] = [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key in steps) {
      const next = column + steps[event.key][1] >= 0 && at(row + steps[event.key][0], column + steps[event.key][1]);
      if (next) {
        cell.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else if (event.key === "Enter" || event.key === " ") {
      choose(frame, content, cell);
    } else return;
    event.preventDefault();
  });
  return (row, column) => {
    choose(frame, content, at(used.indexOf(row), used.indexOf(column)));
    frame.nextElementSibling.scrollIntoView({ block: "nearest" });
  };
}

const choosers = new Map();
function chooserOf(frame) {
  if (!choosers.has(frame)) choosers.set(frame, buildMatrix(frame));
  return choosers.get(frame);
}
document.querySelectorAll(".matrix").forEach(frame => whenSeen(frame, () => chooserOf(frame)));
document.querySelectorAll("[data-cell]").forEach(button => button.addEventListener("click", () => {
  const [name, row, column] = button.dataset.cell.split(",");
  chooserOf(document.querySelector(`[data-matrix="${name}"]`))(Number(row), Number(column));
}));
