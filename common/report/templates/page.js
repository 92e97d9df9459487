"use strict";
document.documentElement.classList.add("js");

// Each word typed begins a word of the row: MNIST finds no FashionMNIST.
const wordsOf = text => text.toLowerCase().split(/[\s,()]+/).filter(Boolean);
const holds = (text, asked) => asked.every(word => text.some(own => own.startsWith(word)));

// Cells hold their raw numbers; tablesort asks for the order from high to low.
Tablesort.extend("number", () => false, (a, b) => Math.sign(b - a) || 0);
for (const table of document.querySelectorAll(".table table")) new Tablesort(table);

const said = button => button.closest("p").querySelector("output");

for (const input of document.querySelectorAll("[data-filter]")) {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  const texts = rows.map(row => wordsOf([...row.cells].map(cell => cell.textContent).join(" ")));
  input.addEventListener("input", () => {
    const words = wordsOf(input.value);
    rows.forEach((row, i) => row.hidden = !holds(texts[i], words));
    const shown = rows.filter(row => !row.hidden).length;
    said(input).value = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}

// As the files in csv/: raw values under the columns' names.
const csvOf = table => {
  const columns = [...table.tHead.rows[0].cells].filter(head => head.dataset.name);
  const rows = [...table.tBodies[0].rows].filter(row => !row.hidden);
  const raw = cell => (cell.dataset.sort ?? cell.textContent).replace(/^-Infinity$/, "");
  const quote = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const lines = rows.map(row => columns.map(head => raw(row.cells[head.cellIndex])));
  return [columns.map(head => head.dataset.name), ...lines].map(line => line.map(quote).join(",") + "\n").join("");
};

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = csvOf(document.getElementById(button.dataset.copy));
    const rows = text.split("\n").length - 2;
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // not allowed: by the selection, or by the reader's own hand
      const area = document.createElement("textarea");
      area.value = text;
      button.closest("p").append(area);
      area.select();
      if (!document.execCommand("copy")) return said(button).value = "press Ctrl+C to copy";
      area.remove();
      button.focus();
    }
    said(button).value = `copied, rows: ${rows}; raw values, as in the CSV file`;
  });
}

// A link into what is folded, or into a row that a filter hides, shows it.
const reveal = hash => {
  const target = document.getElementById(decodeURIComponent(hash.slice(1)));
  for (let part = target; part; part = part.parentElement) {
    part.hidden = false;
    if (part.tagName === "DETAILS") part.open = true;
  }
  return target;
};
addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (link) reveal(link.hash);
});
reveal(location.hash)?.scrollIntoView();

// What scrolls is in reach of the keyboard, and what does not is no stop on the way.
const watcher = new ResizeObserver(changes => changes.forEach(({ target: box }) =>
  box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight ? box.tabIndex = 0 : box.removeAttribute("tabindex")));
document.querySelectorAll(".box, .wide div, .curves figure").forEach(box => watcher.observe(box));

for (const panel of document.querySelectorAll(".curves")) {
  const labels = [...panel.querySelectorAll(".choices label")];
  const curves = {};
  for (const curve of panel.querySelectorAll(".curve")) (curves[curve.dataset.name] ??= []).push(curve);
  const mark = (box, name, on) => curves[box.value]?.forEach(c => c.classList.toggle(name, on));
  for (const label of labels) {
    const box = label.control;
    box.addEventListener("change", () => mark(box, "off", !box.checked));
    for (const type of ["mouseenter", "focusin"]) label.addEventListener(type, () => mark(box, "hot", true));
    for (const type of ["mouseleave", "focusout"]) label.addEventListener(type, () => mark(box, "hot", false));
  }
  const search = panel.querySelector("[type=search]");
  search.addEventListener("input", () => {
    const words = wordsOf(search.value);
    for (const label of labels) label.hidden = !holds(wordsOf(label.textContent), words);
  });
  for (const button of panel.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const label of labels.filter(label => !label.hidden)) {
        label.control.checked = Boolean(button.dataset.show);
        mark(label.control, "off", !label.control.checked);
      }
    });
  }
}
