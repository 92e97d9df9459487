"use strict";
document.documentElement.classList.add("js");

const wordsOf = input => input.value.toLowerCase().split(/\s+/).filter(Boolean);
const holds = (text, words) => words.every(word => text.includes(word));

// Cells hold their raw numbers; tablesort asks for the order from high to low.
Tablesort.extend("number", () => false, (a, b) => Math.sign(b - a) || 0);
for (const table of document.querySelectorAll(".table table")) new Tablesort(table);

for (const input of document.querySelectorAll("[data-filter]")) {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  const texts = rows.map(row => row.textContent.toLowerCase());
  const count = input.closest("p").querySelector("output");
  input.addEventListener("input", () => {
    const words = wordsOf(input);
    rows.forEach((row, i) => row.hidden = !holds(texts[i], words));
    const shown = rows.filter(row => !row.hidden).length;
    count.value = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
  });
}

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
    const words = wordsOf(search);
    for (const label of labels) label.hidden = !holds(label.textContent.toLowerCase(), words);
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
