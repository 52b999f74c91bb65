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
  made.textContent = content;
  return made;
}

// ---------------------------------------------------------------------------------------------------------- images

// Figures are filled when they come near the visible part of the page.
const waiting = new Set();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) fill(entry.target);
}, { rootMargin: "300px" });

function fill(figure) {
  watcher.unobserve(figure);
  if (!waiting.delete(figure)) return;
  const [number, object, detection, view, crop] = data.shots[Number(figure.dataset.shot)];
  const image = data.images[number];
  const drawings = figure.querySelectorAll("svg");
  const [x, y, width, height] = crop ? view : [0, 0, ...image.size];
  const href = crop ?? image.src;
  for (const drawing of drawings) {
    if (href) drawing.append(shape("image", { href, x, y, width, height, preserveAspectRatio: "none" }));
  }
  if (figure.classList.contains("pair")) drawPair(drawings, image, Math.max(drawings[0].getBoundingClientRect().width, 100));
  else drawEntries(drawings[0], [
    ...image.truth.filter(entry => entry[0] === object).map(entry => [entry, "truth", ""]),
    ...image.found.filter(entry => entry[0] === detection).map(entry => [entry, "found", ""]),
  ], view, 100);
}

function fillLater(figure) {
  waiting.add(figure);
  watcher.observe(figure);
}
document.querySelectorAll(".shot").forEach(fillLater);

// Printing needs all figures, and does not scroll to them.
window.addEventListener("beforeprint", () => waiting.forEach(fill));

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

// Draw the annotations and the detections. The page of a comparison also draws the detections of B.
function drawPair([left, ...others], image, width) {
  const view = [0, 0, ...image.size];
  drawEntries(left, image.truth.map(entry => {
    if (entry[4]) return [entry, "crowd", ""];
    if (!entry[3]) return [entry, "wrong", "✗ " + truthLabel(entry)];
    return [entry, "right", image.truth.length > MOST_LABELS ? "" : truthLabel(entry)];
  }), view, width);
  others.forEach((drawing, number) => {
    const found = [image.found, image.other][number].filter(entry => entry[3] >= 0);
    const label = entry => found.length > MOST_LABELS ? "" : foundLabel(entry);
    drawEntries(drawing, found.map(entry => entry[3] ? [entry, "right", label(entry)]
                                                     : [entry, "wrong", "✗ " + foundLabel(entry)]), view, width);
  });
}

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

function choose(frame, cell) {
  frame.querySelectorAll('[aria-selected="true"]').forEach(each => each.removeAttribute("aria-selected"));
  cell.setAttribute("aria-selected", "true");
  const cells = data.cells[frame.dataset.matrix];
  if (!cells) return;
  const numbers = cells[cell.dataset.cell] ?? [];
  const hidden = Number(cell.textContent) > numbers.length;
  const note = hidden ? `, ${numbers.length} of them shown; errors.csv lists all that are wrong` : "";
  const grid = element("div", { class: "shots" });
  for (const number of numbers) {
    const [image, , , view, , caption] = data.shots[number];
    const figure = element("figure", { class: "shot zoom", "data-shot": number });
    figure.append(shape("svg", { viewBox: view.join(" "), role: "img", "aria-label": data.images[image].file }));
    figure.append(element("figcaption", {}, caption));
    grid.append(figure);
    fillLater(figure);
  }
  frame.nextElementSibling.replaceChildren(element("p", {}, (cell.title || "none") + note), grid);
}

document.querySelectorAll(".matrix table").forEach(table => {
  const frame = table.parentElement, rows = table.tBodies[0].rows;
  table.querySelector("td").tabIndex = 0;
  table.addEventListener("click", event => {
    const cell = event.target.closest("td");
    if (cell) choose(frame, cell);
  });
  table.addEventListener("keydown", event => {
    const cell = event.target.closest("td");
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!cell) return;
    if (event.key in steps) {
      const [down, right] = steps[event.key];
      const next = rows[cell.parentElement.sectionRowIndex + down]?.cells[cell.cellIndex + right];
      if (next?.tagName === "TD") {
        cell.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else if (event.key === "Enter" || event.key === " ") choose(frame, cell);
    else return;
    event.preventDefault();
  });
});

document.querySelectorAll("[data-chooses]").forEach(button => button.addEventListener("click", () => {
  const frame = button.closest(".of-kind").querySelector(".matrix");
  choose(frame, frame.querySelector(`[data-cell="${button.dataset.chooses}"]`));
  frame.nextElementSibling.scrollIntoView({ block: "nearest" });
}));
