
"use strict";
document.documentElement.classList.add("scripted");

// Tables: a button in every head sorts by its column; a field above filters rows.  Text goes in as text, never as HTML.
(() => {
  const MISSING = "–";

  /** What a cell is sorted by: its first number, else its text; what was not measured comes last. */
  function key(cell) {
    const text = cell.textContent.trim();
    if (text === MISSING || text === "") return null;
    if (text.startsWith("≈")) return 0;
    const found = text.replaceAll(",", "").replaceAll("−", "-").match(/^[<>+]?\s*(-?\d+(?:\.\d+)?)/);
    return found ? Number(found[1]) : text.toLowerCase();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const ascending = heads[column].getAttribute("aria-sort") === "descending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return ascending ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.title = "Sort by this column";
      button.addEventListener("click", () => sort(table, column));
      head.replaceChildren(button);
    });
  }

  for (const field of document.querySelectorAll("input[data-filter]")) {
    const table = document.getElementById(field.dataset.filter);
    const count = document.querySelector(`output[data-count="${field.dataset.filter}"]`);
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      const left = rows.filter((row) => !row.hidden).length;
      count.textContent = wanted ? `${left} of ${rows.length} rows` : "";
    });
  }
})();

// Folded source, links into closed details, dark or light.
(() => {
  for (const button of document.querySelectorAll("button[data-fold]")) {
    const lines = document.getElementById(button.dataset.fold);
    const show = (open) => {
      lines.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
    };
    show(false);
    button.addEventListener("click", () => show(lines.hidden));
  }

  function reveal() {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id ? document.getElementById(id) : null;
    const closed = target ? target.closest("details") : null;
    if (closed) closed.open = true;
  }
  addEventListener("hashchange", reveal);
  reveal();

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    dispatchEvent(new Event("themechange"));
  });
})();
