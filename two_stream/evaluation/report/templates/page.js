"use strict";
/* Sorts a table when one of its headers is clicked. */
function sorted(table, column, down) {
  const body = table.tBodies[0];
  const value = (row) => {
    const text = row.cells[column].dataset.sort;
    return text === undefined ? null : text !== "" && isFinite(text) ? Number(text) : text;
  };
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  const rows = [...body.rows].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return down ? order(b, a) : order(a, b);
  });
  body.append(...rows.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      /* numbers are sorted with the largest first */
      const down = before ? before === "ascending" : head.classList.contains("num");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sorted(table, column, down);
    });
  });
}
/* Shows the value of a figure that is nearest to the pointer; the arrow keys step through the values. */
const bubble = document.getElementById("value");
for (const svg of document.querySelectorAll("svg[data-values]")) {
  const values = JSON.parse(svg.dataset.values);
  const ring = document.createElementNS(svg.namespaceURI, "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", 5);
  let chosen = -1;
  const show = (number) => {
    if (number === chosen) return;
    chosen = number;
    if (number < 0) {
      ring.remove();
      bubble.textContent = "";
      return;
    }
    const [x, y, text] = values[number];
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    svg.append(ring);
    bubble.textContent = text;
    const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    const left = Math.min(at.x + 10, document.documentElement.clientWidth - bubble.offsetWidth - 4);
    bubble.style.left = `${Math.max(4, left)}px`;
    bubble.style.top = `${at.y > bubble.offsetHeight + 14 ? at.y - bubble.offsetHeight - 10 : at.y + 12}px`;
  };
  const distance = ([x, y], at) => Math.hypot(x - at.x, y - at.y);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const nearest = values.reduce((best, value, n) => (distance(value, at) < distance(values[best], at) ? n : best), 0);
    show(distance(values[nearest], at) < 20 ? nearest : -1);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step) return;
    event.preventDefault();
    show((chosen + step + values.length + (chosen < 0 && step < 0)) % values.length);
  });
}
/* Opens the details of class `paper` while the page is printed. */
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.paper:not([open])")];
  opened.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
