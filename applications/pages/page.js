// Heads of tables sort them; points of figures say their values under the pointer or a finger.
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const number = (text) => {
    const found = text.replaceAll("\u2212", "-").replace(/(\d),(?=\d{3})/g, "$1").match(/^[^\d+-]*([+-]?\d[\d.]*(e[+-]?\d+)?)/);
    return found ? Number(found[1]) : NaN;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => {
        const [one, two] = [value(a, column), value(b, column)], [x, y] = [number(one), number(two)];
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what is no number comes last
        const order = isNaN(x) ? one.localeCompare(two) : x - y;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
const told = document.createElement("div");
told.id = "told";
told.hidden = true;
document.body.append(told);
const tell = (event) => {
  const point = event.target.closest?.("use");
  const text = point?.querySelector("title")?.textContent;
  told.hidden = !text;
  if (!text) return;
  told.textContent = text;
  const box = point.getBoundingClientRect(), room = document.documentElement.clientWidth - told.offsetWidth - 8;
  told.style.left = `${Math.max(8, Math.min(box.right + 4, room)) + scrollX}px`;
  told.style.top = `${box.top - told.offsetHeight - 4 + scrollY}px`;
};
for (const name of ["pointerover", "pointerdown"]) document.addEventListener(name, tell);
for (const box of document.querySelectorAll(".wide")) {
  const focusable = () => box.scrollWidth > box.clientWidth ? (box.tabIndex = 0) : box.removeAttribute("tabindex");
  focusable();
  addEventListener("resize", focusable);
}
