// Heat maps: another shade, another text, other rows, and what lies under the pointer.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector("form");
const NO_LEVEL = 255;
const UNDEFINED = -1;
document.documentElement.classList.add("script");

const panels = data.panels.map((panel, i) => {
  const section = document.querySelector(`[data-panel="${i}"]`);
  return { ...panel, section, map: section.querySelector(".map"), table: section.querySelector("table") };
});

const number = (value, kind) => {
  if (value === null) return "–";
  if (kind === "rank") return value < 10000 ? String(value) : `${Math.round(value / 1000)}k`;
  if (value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 1000)) return value.toFixed(2);
  return value.toExponential(0).replace("e+", "e");
};
const token = (id) => (id === UNDEFINED ? "–" : data.names[id]);
const levels = (panel, view) => Uint8Array.from(atob(panel.levels[view]), (c) => c.charCodeAt(0));
const chosen = (name) => form.elements[name]?.value;
const T = data.tokens.length;

const eachCell = (panel, visit) => {
  for (const row of panel.table.tBodies[0].rows) {
    const n = Number(row.dataset.n);
    for (let t = 0; t < T; t++) visit(row.cells[t + 1], n, t);
  }
};

const draw = () => {
  const view = chosen("view");
  const says = chosen("say");
  for (const panel of panels) {
    const level = levels(panel, view);
    const numbers = panel.numbers[view];
    eachCell(panel, (cell, n, t) => {
      const own = level[n * T + t];
      const kept = ["hit", "differs", "pinned"].filter((name) => cell.classList.contains(name));
      cell.className = [own === NO_LEVEL ? "none" : `c${own}`, ...kept].join(" ");
      const top = panel.top[n][t * panel.k];
      cell.textContent = says === "token" ? token(top) : number(numbers[n][t], data.views[view].kind);
    });
    panel.table.classList.toggle("blocks", chosen("states") === "blocks");
    panel.table.classList.toggle("fit", chosen("width") === "fit");
  }
  for (const scale of document.querySelectorAll(".scale")) scale.hidden = scale.dataset.view !== view;
  const show = chosen("show") ?? "side";
  document.querySelector(".panels").classList.toggle("side", show === "side" && panels.length > 1);
  panels.forEach((panel, i) => {
    panel.section.hidden = show !== "side" && show !== String(i);
  });
};

// The five most probable tokens of a state, as rows of a table.
const best = (panel, n, t) => {
  const table = element("table");
  const body = table.createTBody();
  for (let i = 0; i < Math.min(5, panel.k); i++) {
    const id = panel.top[n][t * panel.k + i];
    if (id === UNDEFINED) break;
    const row = body.insertRow();
    row.append(element("td", token(id), "mono"));
    const probability = panel.probabilities[n][t * panel.k + i];
    row.append(element("td", probability >= 0.0005 ? probability.toFixed(3) : probability.toExponential(0)));
  }
  return table;
};

const headed = (heading, ...nodes) => {
  const made = element("div");
  made.append(element("h4", heading), ...nodes);
  return made;
};

const describe = (panel, n, t) => {
  const site = panel.sites[n];
  const head = element("div");
  head.append(element("b", site, "mono"), ` position ${t}: read `);
  head.append(element("b", token(data.tokens[t]), "mono"));
  if (t + 1 < T) head.append(", followed by ", element("b", token(data.tokens[t + 1]), "mono"));
  const columns = element("div", undefined, "columns");
  columns.append(headed(panel.difference ? panels[panel.reading].title : "most probable", best(panel, n, t)));
  const other = panel.difference ? panels[panel.against] : null;
  const at = other ? other.sites.indexOf(site) : -1;
  if (at >= 0) columns.append(headed(other.title, best(other, at, t)));
  const table = element("table");
  const body = table.createTBody();
  for (const [name, view] of Object.entries(data.views)) {
    const value = panel.numbers[name][n][t];
    const row = body.insertRow();
    row.append(element("td", name === "probability" ? "probability of the top-1" : view.title));
    row.append(element("td", value === null ? "–" : String(value)));
  }
  columns.append(headed(panel.difference ? "size of the difference" : "in numbers (nats)", table));
  return [head, columns];
};

let active = null;
const activate = (panel, cell) => {
  active?.cell.classList.remove("active");
  active = cell ? { panel, cell } : null;
  if (!cell) return tooltip.hide();
  cell.classList.add("active");
  cell.id ||= `p${panels.indexOf(panel)}n${cell.parentElement.dataset.n}t${cell.cellIndex - 1}`;
  panel.table.setAttribute("aria-activedescendant", cell.id);
  tooltip.show(cell, describe(panel, Number(cell.parentElement.dataset.n), cell.cellIndex - 1));
};
const isCell = (node) =>
  node?.tagName === "TD" && node.parentElement.dataset.n !== undefined && node.cellIndex <= T;

const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
const seen = (panel) => [...panel.table.tBodies[0].rows].filter((row) => row.checkVisibility());

for (const panel of panels) {
  panel.map.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (isCell(cell)) activate(panel, cell);
  });
  panel.map.addEventListener("pointerleave", () => activate(panel, null));
  panel.table.addEventListener("blur", () => activate(panel, null));
  panel.table.addEventListener("focus", () => {
    if (panel.table.matches(":focus-visible")) activate(panel, seen(panel)[0].cells[1]);
  });
  panel.table.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    const rows = seen(panel);
    const from = active?.panel === panel ? active.cell : rows[0].cells[1];
    const [down, right] = steps[event.key];
    const r = Math.min(Math.max(rows.indexOf(from.parentElement) + down, 0), rows.length - 1);
    const c = Math.min(Math.max(from.cellIndex + right, 1), T);
    const to = rows[r].cells[c];
    to.scrollIntoView({ block: "nearest", inline: "nearest" });
    activate(panel, to);
  });
  // Side by side, the maps stay at the same place.
  panel.map.addEventListener("scroll", () => {
    for (const other of panels) {
      if (other === panel) continue;
      other.map.scrollLeft = panel.map.scrollLeft;
      other.map.scrollTop = panel.map.scrollTop;
    }
  });
}
form.addEventListener("change", () => {
  activate(null, null);
  draw();
});
form.addEventListener("submit", (event) => event.preventDefault());
draw();
