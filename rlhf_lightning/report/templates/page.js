"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text === "" || text === "–" ? null : isNaN(text) ? text : Number(text);
  };
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.sorted !== "up";
    heads.forEach((other) => delete other.dataset.sorted);
    head.dataset.sorted = up ? "up" : "down";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}
for (const row of document.querySelectorAll("tr[data-group]")) {
  const marked = () => document.querySelectorAll(`svg .group-${row.dataset.group}`);
  row.addEventListener("mouseenter", () => {
    if (!marked().length) return;
    document.body.classList.add("focus");
    marked().forEach((part) => part.classList.add("on"));
  });
  row.addEventListener("mouseleave", () => {
    document.body.classList.remove("focus");
    marked().forEach((part) => part.classList.remove("on"));
  });
}
document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
// A click enlarges a figure around the point that was clicked; another one puts it back.
for (const figure of document.querySelectorAll("figure:has(svg)")) {
  figure.title = "click to enlarge or put back";
  figure.addEventListener("click", (event) => {
    if (event.target.closest(".panels")) return;
    const before = figure.querySelector("svg").getBoundingClientRect();
    const [x, y] = [(event.clientX - before.left) / before.width, (event.clientY - before.top) / before.height];
    figure.classList.toggle("zoomed");
    const after = figure.querySelector("svg").getBoundingClientRect();
    figure.scrollTo(x * after.width - figure.clientWidth / 2, y * after.height - figure.clientHeight / 2);
  });
}
