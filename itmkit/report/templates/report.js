const byId = (id) => document.getElementById(id);
const list = byId("list");
const rows = [...list.children];

function showQueries() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const order = byId("order").value;
  const sorted = [...rows];
  if (order) sorted.sort((a, b) => (order === "rank" ? 1 : -1) * (a.dataset.rank - b.dataset.rank));
  list.append(...sorted);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word))
      && (!byId("kind").value || row.dataset.kind === byId("kind").value)
      && (!byId("side").value || row.dataset.side === byId("side").value));
    shown += !row.hidden;
  }
  byId("count").textContent = `${shown} of ${rows.length} queries`;
}

for (const id of ["words", "kind", "side", "order"]) byId(id).addEventListener("input", showQueries);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
showQueries();

for (const button of document.querySelectorAll(".sortable button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = [...head.parentNode.children].indexOf(head);
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.children[column].textContent.trim();
    const compare = (a, b) => value(a) - value(b) || value(a).localeCompare(value(b));
    body.append(...[...body.rows].sort((a, b) => (descending ? -1 : 1) * compare(a, b)));
  });
}
