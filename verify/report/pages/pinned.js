// One state at one position, pinned: ranks over depth, what adds up to its logits, and attention.
const SVG = "http://www.w3.org/2000/svg";
const drawing = (name, attributes, ...inside) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};
const pinned = { section: document.querySelector(".pinned"), cell: null, head: 0, layer: null };
const place = (name) => pinned.section.querySelector(`#${name}`);
const rowName = (panel, n) =>
  panel.table.querySelector(`tbody tr[data-n="${n}"] th`)?.textContent ?? panel.sites[n];

// A table that is scrolled by itself where the window is narrow, by the keyboard too.
const scrolling = (label, table) => {
  const around = element("div", undefined, "wide");
  around.tabIndex = 0;
  around.setAttribute("role", "region");
  around.setAttribute("aria-label", label);
  around.append(table);
  return around;
};

const RANKS = { rank_final_top1: "final top-1", rank_next: "next token", rank_input: "token read" };
const CHART = { width: 440, height: 160, left: 44, right: 12, top: 10, bottom: 24 };
// Rank 0 on top; equal factors of 1 + rank are equally far apart.
const rankChart = (panel, n, t) => {
  const found = Object.keys(RANKS).map((name) => panel.numbers[name].map((row) => row[t]));
  const most = Math.log1p(Math.max(1, ...found.flat().filter((rank) => rank !== null)));
  const wide = CHART.width - CHART.left - CHART.right;
  const tall = CHART.height - CHART.top - CHART.bottom;
  const x = (i) => CHART.left + (wide * i) / Math.max(1, panel.sites.length - 1);
  const y = (rank) => CHART.top + (tall * Math.log1p(rank)) / most;
  const svg = drawing("svg", {
    class: "ranks",
    viewBox: `0 0 ${CHART.width} ${CHART.height}`,
    width: CHART.width,
    height: CHART.height,
    role: "img",
    "aria-label": Object.values(RANKS)
      .map((what, i) => `rank of the ${what} from ${panel.sites[0]} up: ${found[i].map((r) => r ?? "none").join(", ")}`)
      .join("; "),
  });
  svg.append(drawing("line", { class: "at", x1: x(n), x2: x(n), y1: CHART.top, y2: CHART.top + tall }));
  for (const [rank, text] of [[0, "0"], [Math.expm1(most), String(Math.round(Math.expm1(most)))]]) {
    svg.append(drawing("text", { x: CHART.left - 6, y: y(rank) + 4, "text-anchor": "end" }, text));
  }
  const every = Math.ceil(panel.sites.length / 8);
  panel.sites.forEach((_, i) => {
    if (i % every) return;
    const at = { x: x(i), y: CHART.height - 8, "text-anchor": "middle" };
    svg.append(drawing("text", at, rowName(panel, i)));
  });
  found.forEach((ranks, i) => {
    let points = [];
    const line = () => {
      if (points.length) svg.append(drawing("polyline", { class: `r${i}`, points: points.join(" ") }));
      points = [];
    };
    ranks.forEach((rank, k) => {
      if (rank === null) return line();
      points.push(`${x(k).toFixed(1)},${y(rank).toFixed(1)}`);
    });
    line();
  });
  return svg;
};

const showRanks = (panel, n, t) => {
  const final = panel.top[panel.sites.length - 1][t * panel.k];
  const next = t + 1 < T ? data.tokens[t + 1] : UNDEFINED;
  const key = element("p", undefined, "key");
  [final, next, data.tokens[t]].forEach((id, i) => {
    const line = drawing("svg", { class: "ranks", width: 26, height: 8, "aria-hidden": "true" });
    line.append(drawing("line", { class: `r${i}`, x1: 0, x2: 26, y1: 4, y2: 4 }));
    const said = element("span");
    said.append(line, ` ${Object.values(RANKS)[i]} `, element("b", token(id), "mono"));
    key.append(said);
  });
  const said = "How many tokens each state prefers to these; 0 is the top, on a logarithmic scale.";
  place("ranks").replaceChildren(
    element("h3", "Rank over depth"), rankChart(panel, n, t), key, element("p", said, "quiet"),
  );
};

const BAR = 110;
const bar = (value, most) => {
  const svg = drawing("svg", { class: "bar", width: BAR, height: 10, "aria-hidden": "true" });
  const long = most ? (Math.abs(value) / most) * (BAR / 2) : 0;
  const x = value < 0 ? BAR / 2 - long : BAR / 2;
  svg.append(
    drawing("rect", { class: value < 0 ? "less" : "more", x, y: 1, width: long, height: 8 }),
    drawing("line", { x1: BAR / 2, x2: BAR / 2, y1: 0, y2: 10 }),
  );
  return svg;
};
const showAttribution = (panel, t) => {
  const names = Object.keys(panel.attributions);
  const shown = names.filter((name, i) => {
    const own = panel.attributions[name].tokens[t];
    return own !== UNDEFINED && names.every((n, k) => k >= i || panel.attributions[n].tokens[t] !== own);
  });
  if (!shown.length) return place("attribution").replaceChildren();
  const first = panel.attributions[shown[0]];
  const all = shown.flatMap((name) => panel.attributions[name].terms.map((row) => row[t] ?? 0));
  const most = Math.max(...all.map(Math.abs));
  const table = element("table", undefined, "attribution");
  const head = table.createTHead().insertRow();
  const heading = (text) => Object.assign(element("th", text), { scope: "col" });
  head.append(heading("written by"));
  for (const name of shown) head.append(heading(`${token(panel.attributions[name].tokens[t])} (${TARGETS[name]})`));
  const body = table.createTBody();
  const row = (label, values, bars) => {
    const made = body.insertRow();
    made.append(Object.assign(element("th", label), { scope: "row" }));
    for (const value of values) {
      const cell = made.insertCell();
      cell.append(element("span", value === null ? "–" : value.toFixed(3), "number"));
      if (bars && value !== null) cell.append(bar(value, most));
    }
    return made;
  };
  row("the logit", shown.map((name) => panel.attributions[name].logits[t]), false).className = "sum";
  for (let s = first.parts.length - 1; s >= 0; s--) {
    row(first.parts[s], shown.map((name) => panel.attributions[name].terms[s][t]), true);
  }
  place("attribution").replaceChildren(
    element("h3", "What adds up to the logit"),
    scrolling("terms of the logit", table),
    element("p", "Each sub-block's write to the stream, through the last norm as it divides here, times the token's row of the head.", "quiet"),
  );
};
const TARGETS = { top1: "the reference's top-1", next: "next" };

const weights = (panel, layer) => {
  const found = panel.patterns[layer];
  if (!found) return null;
  found.bytes ??= Uint8Array.from(atob(found.weights), (c) => c.charCodeAt(0));
  return (head, t, s) => found.bytes[(head * T + t) * T + s];
};
const shadedCell = (row, step, title) => {
  const cell = row.insertCell();
  if (step === NO_LEVEL) return Object.assign(cell, { className: "none", textContent: "–", title });
  const percent = Math.round((100 * step) / data.steps);
  cell.className = `c${Math.round(((data.shades - 1) * step) / data.steps)}`;
  cell.textContent = percent ? String(percent) : "";
  cell.title = title;
  return cell;
};
// Rows by sources: a heading of tokens, and in each row its own heading and a cell a source.
const attentionTable = (label, sources, rows, heading, step) => {
  const table = element("table", undefined, "lens attention");
  const top = table.createTHead().insertRow();
  top.append(element("th", ""));
  for (let s = 0; s < sources; s++) top.append(Object.assign(element("th", token(data.tokens[s])), { scope: "col", title: `position ${s}` }));
  const body = table.createTBody();
  for (let r = 0; r < rows; r++) {
    const row = body.insertRow();
    const th = Object.assign(element("th"), { scope: "row" });
    th.append(heading(r));
    row.append(th);
    for (let s = 0; s < sources; s++) {
      const value = step(r, s);
      if (value === null) row.insertCell();
      else shadedCell(row, value, `${token(data.tokens[s])} at position ${s}`);
    }
  }
  return scrolling(label, table);
};
const showAttention = (panel, layer, t) => {
  const at = weights(panel, layer);
  if (!at) return place("attention").replaceChildren();
  const heads = panel.patterns[layer].heads;
  pinned.head = Math.min(pinned.head, heads - 1);
  const button = (head) => {
    const made = element("button", `head ${head}`);
    made.type = "button";
    made.setAttribute("aria-pressed", String(head === pinned.head));
    made.addEventListener("click", () => {
      pinned.head = head;
      showAttention(panel, layer, t);
      place("attention").querySelectorAll("button")[head].focus();
    });
    return made;
  };
  place("attention").replaceChildren(
    element("h3", `Attention of layer ${layer} at position ${t}, in percent`),
    attentionTable(`heads of layer ${layer} by sources`, t + 1, heads, button, (h, s) => at(h, t, s)),
    element("h3", `Head ${pinned.head} of layer ${layer}: each position by what it attends to`),
    attentionTable(
      `head ${pinned.head} of layer ${layer}: targets by sources`, T, T,
      (target) => Object.assign(element("span", token(data.tokens[target])), { title: `position ${target}` }),
      (target, s) => (s > target ? null : at(pinned.head, target, s)),
    ),
  );
};

const pin = (panel, cell) => {
  pinned.cell?.classList.remove("pinned");
  pinned.cell = cell;
  cell.classList.add("pinned");
  const n = Number(cell.parentElement.dataset.n);
  const t = cell.cellIndex - 1;
  const own = panels[panel.reading];
  const site = own.sites[n];
  place("pinned").textContent = `${panels.length > 1 ? `${own.title}: ` : ""}${site}, position ${t}: ${token(data.tokens[t])}`;
  pinned.section.hidden = false;
  showRanks(own, n, t);
  showAttribution(own, t);
  showAttention(own, String(/^h\.(\d+)/.exec(site)?.[1] ?? 0), t);
};
for (const panel of panels) {
  panel.map.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (isCell(cell)) pin(panel, cell);
  });
  panel.table.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && active?.panel === panel) pin(panel, active.cell);
  });
}
pin(panels[0], seen(panels[0])[0].cells[Math.max(1, T - 1)]);
