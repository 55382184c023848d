// A box beside what the pointer or the keyboard is at. Shared by every page.
"use strict";
const tooltip = {
  box: document.getElementById("tooltip"),
  // Show nodes beside an element; they are made by the page, never parsed from text.
  show(beside, nodes) {
    this.box.replaceChildren(...nodes);
    this.box.hidden = false;
    const at = beside.getBoundingClientRect();
    const own = this.box.getBoundingClientRect();
    const left = Math.min(at.right + 10, innerWidth - own.width - 8);
    const below = at.bottom + 8 + own.height < innerHeight;
    this.box.style.left = Math.max(8, left) + "px";
    this.box.style.top = Math.max(8, below ? at.bottom + 8 : at.top - own.height - 8) + "px";
  },
  hide() {
    this.box.hidden = true;
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
addEventListener("scroll", () => tooltip.hide(), { passive: true, capture: true });
