// Charts: a tooltip for each mark, arrow keys from mark to mark, and a jump to its finding.
// All that is shown is in the page already; this only brings it to where the reader looks.
const findingOf = (mark) => document.getElementById(mark.getAttribute("href").slice(1));

const describe = (mark) => {
  const [site, status, score, limit, message] = findingOf(mark).cells;
  const head = element("div");
  head.append(element("b", site.textContent, "mono"), " ");
  head.append(element("span", status.textContent, status.className));
  const nodes = [head];
  if (score.textContent && limit.textContent) {
    nodes.push(element("div", `score ${score.textContent}, limit ${limit.textContent}`));
  }
  const text = element("div", undefined, "mono");
  text.append(...[...message.childNodes].map((node) => node.cloneNode(true)));
  return [...nodes, text];
};

const open = (row) => {
  for (let at = row; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  for (const old of document.querySelectorAll(".aim")) old.classList.remove("aim");
  row.classList.add("aim");
  row.scrollIntoView({ block: "center" });
};

for (const chart of document.querySelectorAll("svg.chart")) {
  const marks = [...chart.querySelectorAll(".mark")];
  if (!marks.length) continue;
  // The browser's own tooltip would cover ours; what it says stays the name of the mark.
  for (const mark of marks) {
    const title = mark.querySelector("title");
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  const place = (mark) => [Number(mark.dataset.row), Number(mark.dataset.column)];
  let active = null;
  const activate = (mark) => {
    active?.classList.remove("active");
    active = mark;
    active?.classList.add("active");
    if (active) {
      active.id ||= `mark-${active.getAttribute("href").slice(1)}`;
      chart.setAttribute("aria-activedescendant", active.id);
    }
    if (active) tooltip.show(active, describe(active));
    else tooltip.hide();
  };
  // The nearest mark in a direction: along the strip, or in the next strip that has one.
  const towards = (rows, columns) => {
    const [row, column] = place(active);
    const ahead = marks.filter((mark) => {
      const [r, c] = place(mark);
      return rows ? (r - row) * rows > 0 : r === row && (c - column) * columns > 0;
    });
    const far = (mark) => {
      const [r, c] = place(mark);
      return Math.abs(r - row) * 1000 + Math.abs(c - column);
    };
    return ahead.sort((a, b) => far(a) - far(b))[0] ?? active;
  };
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  chart.addEventListener("focus", () => {
    activate(active ?? chart.querySelector(".mark.failed") ?? marks[0]);
  });
  chart.addEventListener("blur", () => activate(null));
  chart.addEventListener("keydown", (event) => {
    if (!active) return;
    if (event.key in steps) activate(towards(...steps[event.key]));
    else if (event.key === "Home") activate(marks[0]);
    else if (event.key === "End") activate(marks.at(-1));
    else if (event.key === "Enter") open(findingOf(active));
    else return;
    event.preventDefault();
  });
  for (const mark of marks) {
    mark.addEventListener("pointerenter", () => activate(mark));
    mark.addEventListener("click", (event) => {
      event.preventDefault();
      open(findingOf(mark));
    });
  }
  chart.addEventListener("pointerleave", () => activate(null));
}
