// The trace browser: a form, a list, one trace whole. State lives in the form; the address mirrors it.

/** What the form holds before anybody touches it; training has no controls. */
const usual = (view) => ({ view, q: "", run: "", against: "", change: "changed", outcome: "", set: "",
  control: view === "test" ? PLAIN : "", modality: "", type: "", step: "", sort: "file", order: "up" });
const ADDRESS = "#traces?";

class TraceBrowser {
  constructor(traces) {
    this.traces = traces;
    this.section = document.getElementById("traces");
    this.form = this.section.querySelector("form");
    this.detail = document.getElementById("trace-detail");
    this.count = document.getElementById("trace-count");
    this.help = document.getElementById("trace-help");
    const draw = { test: testRow, train: groupRow };
    this.list = new TraceList(document.getElementById("trace-list"),
      (entry) => draw[entry.view](traces, entry), (entry) => this.open(entry));
    this.values = usual("test");
    this.listen();
  }

  listen() {
    this.form.addEventListener("input", (event) => this.edited(event.target.name));
    this.list.box.addEventListener("click", () => this.remember());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("reset", (event) => {
      event.preventDefault();
      this.set({ view: this.values.view });
      this.remember();
    });
    document.getElementById("trace-help-button").addEventListener("click", () => this.help.showModal());
    document.addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => this.fromAddress());
  }

  /** The address decides what is shown first; without one, the first test questions. */
  start() {
    this.set({});
    this.fromAddress();
  }

  fromAddress() {
    if (!location.hash.startsWith(ADDRESS)) return;
    const { item, ...values } = Object.fromEntries(new URLSearchParams(location.hash.slice(ADDRESS.length)));
    this.set(values, item);
    this.section.scrollIntoView({ behavior: "instant" });
  }

  /** The address of these values, less what is as usual. */
  address(values, entry) {
    const own = Object.entries(values).filter(
      ([name, value]) => name === "view" || value !== usual(values.view)[name]);
    return ADDRESS + new URLSearchParams([...own, ...(entry ? [["item", entry.key]] : [])]);
  }

  /** Replaced, not added: the way back leads out of the browser, not through every key press. */
  remember() {
    clearTimeout(this.later); // browsers refuse an address that changes with every repeat of a held key
    this.later = setTimeout(() => history.replaceState(
      null, "", this.address(this.values, this.list.entries[this.list.active])), 100);
  }

  /** Put values into the form; a name or value that this page does not know falls back to the usual one. */
  set(values, item) {
    const view = values.view in this.traces.entries ? values.view : "test";
    const known = Object.keys(usual(view)).filter((name) => name in values);
    this.values = { ...usual(view), ...Object.fromEntries(known.map((name) => [name, values[name]])), view };
    this.fillChoices();
    for (const field of this.form.elements) {
      if (field.type === "radio") field.checked = field.value === this.values[field.name];
      else if (field.name) field.value = this.values[field.name];
      if (field.tagName === "SELECT" && (field.selectedIndex < 0 || field.selectedOptions[0].disabled)) {
        field.selectedIndex = 0;
        this.values[field.name] = field.value;
      }
    }
    this.pairUp();
    this.search(item);
  }

  /** A field was changed by hand. */
  edited(name) {
    const view = this.form.elements.view.value;
    if (name === "view") this.set({ q: this.values.q, view });
    else {
      this.values = { ...this.values, ...Object.fromEntries(new FormData(this.form)) };
      if (name === "against") this.pairUp();
      this.search(this.list.entries[this.list.active]?.key);
    }
    this.remember();
  }

  /** A comparison needs two different runs: the later row of the tables is taken where none was chosen. */
  pairUp() {
    const { against, run, view } = this.values;
    if (!against || view !== "test" || (run && run !== against)) return;
    const other = this.traces.replyNames.findLast((name) => name.value !== against);
    this.values.run = this.form.elements.run.value = other?.value ?? "";
  }

  /** Choices of each select, from the entries of the view; a select with a single choice says nothing. */
  fillChoices() {
    const { view } = this.values, { traces } = this;
    const entries = traces.entries[view];
    const different = (name) => [...new Set(entries.map((entry) => entry[name]))].filter((value) => value !== "" && value !== undefined);
    const plain = (name) => different(name).map((value) => [value, titled(traces, value)]);
    const runs = view === "test" ? traces.replyNames.map((name) => [name.value, name.label])
      : different("run").map((k) => [traces.runs[k].name, traces.runs[k].label]);
    const earlier = view === "train" && entries.some((entry) => entry.before) ? [["before", "the time before, same run"]] : [];
    const choices = {
      run: runs, against: [...earlier, ...(runs.length > 1 ? runs : [])], set: plain("set"), control: plain("control"),
      // where each test set is one modality, the two filters would be one
      modality: entries.every((entry) => entry.modality === entry.set) ? [] : plain("modality"),
      type: plain("type"),
      step: different("step").sort((a, b) => a - b).map((n) => [n, n]),
    };
    for (const [name, found] of Object.entries(choices)) {
      const field = this.form.elements[name];
      const all = make("option", { value: "" }, field.dataset.all);
      field.replaceChildren(all, ...found.map(([value, label]) => make("option", { value }, String(label))));
      field.closest("label").hidden = found.length < (name === "against" ? 1 : 2);
    }
    for (const option of this.form.querySelectorAll("option[data-view]")) {
      option.hidden = option.disabled = option.dataset.view !== view;
    }
  }

  search(item) {
    this.form.elements.change.closest("label").hidden = !this.values.against;
    this.found = search(this.traces, this.values);
    this.words = wordsOf(this.values.q);
    const all = this.traces.entries[this.values.view].length;
    const what = this.values.view === "test" ? "test answer" : "training group";
    this.count.textContent = `${this.found.length.toLocaleString("en")} of ${several(all, what)}`;
    this.list.show(this.found, item);
  }

  open(entry) {
    const link = (one) => this.address({ ...usual(one.view), control: one.control ?? "" }, one);
    const show = { test: showTest, train: showGroup };
    this.detail.replaceChildren(...(entry ? show[entry.view](this.traces, entry, this.words, link)
      : [make("p", { class: "small" }, "Nothing passes these filters.")]).filter(Boolean));
    this.detail.scrollTop = 0;
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || this.help.open) return;
    const typing = event.target.matches("input:not([type=radio]), select, textarea");
    const leaves = event.key === "Escape" || (event.key === "Enter" && event.target === this.form.elements.q);
    if (leaves && this.section.contains(event.target)) {
      event.preventDefault(); // Escape would empty the search
      this.list.box.focus();
    } else if (!typing) this.press(event);
  }

  press(event) {
    const { list } = this, inList = event.target === list.box;
    const move = (by) => () => {
      if (!this.section.contains(document.activeElement) || this.form.contains(document.activeElement)) list.box.focus();
      list.move(by);
      this.remember();
    };
    const anywhere = {
      j: move(1), k: move(-1), "/": () => this.form.elements.q.focus(), "?": () => this.help.showModal(),
      t: () => this.otherView(),
    };
    const inside = {
      ArrowDown: move(1), ArrowUp: move(-1), PageDown: move(list.page), PageUp: move(-list.page),
      Home: move(-list.entries.length), End: move(list.entries.length), Enter: () => this.detail.focus(),
    };
    const act = (inList && inside[event.key]) || (this.keysOn && anywhere[event.key]);
    if (!act) return;
    event.preventDefault(); // else "/" would be typed, and arrows would scroll the page
    act();
  }

  /** Keys of one letter get in the way of speech input, so they can be switched off. */
  get keysOn() {
    return document.getElementById("trace-keys").checked;
  }

  otherView() {
    const view = this.values.view === "test" ? "train" : "test";
    if (!this.traces.entries[view].length) return;
    this.set({ q: this.values.q, view });
    this.remember();
  }
}

async function startTraces() {
  const wait = document.getElementById("trace-wait");
  if (!("DecompressionStream" in window)) {
    wait.textContent = "This browser cannot unpack the traces: open the page in Chromium 80, Firefox 113, Safari 16.4 or later.";
    return;
  }
  const data = await unpack(document.getElementById("trace-data").textContent);
  const pictures = JSON.parse(document.getElementById("trace-pictures").textContent);
  wait.hidden = true;
  document.getElementById("trace-app").hidden = false;
  new TraceBrowser(prepare(data, pictures)).start();
  performance.mark("traces ready");
}

startTraces();
