"use strict";
/* Filters the list, and shows the differences between the chosen rows. */
const { keys, missing, entries } = JSON.parse(document.getElementById("data").textContent);
const rows = [...document.querySelectorAll("#runs tbody tr")];
const form = document.querySelector(".filter");
const bar = document.getElementById("bar");
const [hint, result] = document.querySelectorAll("#compare > p, #compare > div");
const made = (tag, text, parent) => {
  const one = parent.appendChild(document.createElement(tag));
  one.textContent = text;
  return one;
};
const filter = () => {
  const { words, set, kind } = form.elements;
  const wanted = words.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word)) ||
      ![[set, row.dataset.set], [kind, row.dataset.kind]].every(([select, own]) => !select.value || select.value === own);
  }
  document.querySelector("#runs h2 small").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
};
/* Runs differ in a setting if one of them chose it, or if its values differ where it exists. */
const differs = (chosen, n) => {
  const values = new Set(chosen.map((one) => one.values[n]));
  if (values.size < 2) return false;
  values.delete(missing);
  return values.size > 1 || chosen.some((one) => one.chosen.includes(n));
};
const reasons = (chosen) => {
  const scored = chosen.filter((one) => one.facts);
  const found = chosen.filter((one) => !one.facts).map((one) => `no scores: ${one.name}`);
  for (const label of Object.keys(scored[0]?.facts ?? {})) {
    const values = new Map(scored.map((one) => [one.facts[label], one.name]).reverse());
    if (values.size > 1) found.push(`different ${label}: ${[...values].reverse().map(([value, name]) => `${value} (${name})`).join(", ")}`);
  }
  return found;
};
const compare = () => {
  const chosen = rows.filter((row) => row.querySelector("input")?.checked).map((row) => entries[row.dataset.number]);
  bar.hidden = chosen.length === 0;
  bar.firstChild.textContent = `${chosen.length} chosen${chosen.length < 2 ? ": choose another one" : ""}`;
  bar.querySelector("a").hidden = result.hidden = chosen.length < 2;
  hint.hidden = !result.hidden;
  if (result.hidden) return;
  const [list, command, head, body, note] = result.querySelectorAll("ul, pre, thead, tbody, p");
  for (const part of [list, head, body]) part.replaceChildren();
  const why = reasons(chosen);
  list.hidden = !why.length;
  why.forEach((text) => made("li", `Not comparable: ${text}`, list));
  command.hidden = why.length > 0;
  command.textContent = `two-stream compare ${chosen.map((one) => one.path).join(" ")}`;
  const known = chosen.filter((one) => one.values);
  const line = made("tr", "", head);
  for (const text of ["setting", ...known.map((one) => one.name)]) made("th", text, line).scope = "col";
  keys.forEach((key, n) => {
    if (!differs(known, n)) return;
    const row = made("tr", "", body);
    const name = made("th", "", row);
    name.scope = "row";
    key.split(/(?<=[._])/).forEach((part) => name.append(part, document.createElement("wbr")));
    known.forEach((one) => made("td", one.values[n], row));
  });
  note.textContent = `${body.rows.length} settings differ; name, seed and split are left out.` +
    chosen.filter((one) => !one.values).map((one) => ` The settings of ${one.name} are unknown.`).join("");
};
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
for (const row of rows) {
  if (!entries[row.dataset.number]) continue;
  const box = document.createElement("input");
  box.type = "checkbox";
  box.ariaLabel = `compare ${entries[row.dataset.number].name}`;
  box.addEventListener("change", compare);
  row.cells[0].prepend(box);
}
bar.querySelector("button").addEventListener("click", () => {
  rows.forEach((row) => row.querySelectorAll("input").forEach((box) => { box.checked = false; }));
  compare();
});
