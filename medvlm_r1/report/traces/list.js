// A list of any length: only the visible rows are in the page.

const ROW = 64; // pixels; the stylesheet's height of a row
const SPARE = 6; // rows drawn above and below the visible ones

/** A new element; strings among its children become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== ""));
  return element;
}

class TraceList {
  /**
   * @param box the scrolling element, a listbox that keeps the focus itself
   * @param draw entry -> children of its row
   * @param selected called with the entry that becomes active, or null
   */
  constructor(box, draw, selected) {
    Object.assign(this, { box, draw, selected, entries: [], active: -1 });
    this.sheet = make("div", { class: "sheet", role: "presentation" });
    box.append(this.sheet);
    box.addEventListener("scroll", () => requestAnimationFrame(() => this.paint()));
    box.addEventListener("click", (event) => {
      const row = event.target.closest("[data-at]");
      if (row) this.select(Number(row.dataset.at));
    });
    new ResizeObserver(() => this.paint()).observe(box);
  }

  /** Show other entries; the one with this key becomes active, else the first. */
  show(entries, key) {
    this.entries = entries;
    this.sheet.style.height = `${entries.length * ROW}px`;
    const at = entries.findIndex((entry) => entry.key === key);
    this.box.scrollTop = 0;
    this.select(at < 0 ? 0 : at);
  }

  select(at) {
    this.active = Math.max(0, Math.min(at, this.entries.length - 1));
    this.reveal();
    this.paint();
    this.selected(this.entries[this.active] ?? null);
  }

  move(by) {
    this.select(this.active + by);
  }

  /** Rows that fit, minus one: two pages share a row. */
  get page() {
    return Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
  }

  reveal() {
    const top = this.active * ROW, { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.box.scrollTop = top + ROW - clientHeight;
  }

  /** Draw the visible rows, and the active one anyway: aria-activedescendant refers to it. */
  paint() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - SPARE);
    const end = Math.min(this.entries.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + SPARE);
    const shown = [];
    for (let at = first; at < end; at++) shown.push(at);
    if (this.active >= 0 && this.entries.length && !shown.includes(this.active)) shown.push(this.active);
    this.sheet.replaceChildren(...shown.map((at) => this.row(at)));
    this.box.setAttribute("aria-activedescendant", this.entries.length ? `trace-${this.active}` : "");
  }

  row(at) {
    return make("div", {
      id: `trace-${at}`, class: "trace", role: "option", "data-at": at, style: `top: ${at * ROW}px`,
      "aria-selected": String(at === this.active), "aria-posinset": at + 1, "aria-setsize": this.entries.length,
    }, ...this.draw(this.entries[at]));
  }
}
