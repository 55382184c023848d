// A box beside what the pointer or the keyboard is at. Shared by every page.
"use strict";
const tooltip = {
  box: document.getElementById("tooltip"),
  beside: null,
  // Show nodes beside an element; they are made by the page, never parsed from text.
  show(beside, nodes) {
    this.box.replaceChildren(...nodes);
    this.box.hidden = false;
    this.beside = beside;
    this.place();
  },
  place() {
    if (!this.beside) return;
    const at = this.beside.getBoundingClientRect();
    const own = this.box.getBoundingClientRect();
    const left = Math.min(at.right + 10, innerWidth - own.width - 8);
    const top = at.bottom + 8 + own.height < innerHeight ? at.bottom + 8 : at.top - own.height - 8;
    this.box.style.left = `${Math.max(8, left)}px`;
    this.box.style.top = `${Math.max(8, Math.min(top, innerHeight - own.height - 8))}px`;
  },
  hide() {
    this.box.hidden = true;
    this.beside = null;
  },
};
const element = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};
addEventListener("keydown", (event) => {
  if (event.key === "Escape") tooltip.hide();
});
for (const moved of ["scroll", "resize"]) {
  addEventListener(moved, () => tooltip.place(), { passive: true, capture: true });
}
