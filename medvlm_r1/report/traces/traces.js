// The trace browser: a form, a list, one trace in full. The form holds the state; the address mirrors it.

/** Default values of the form; training has no controls. */
const defaults = (view) => ({ view, q: "", run: "", against: "", change: "changed", outcome: "", set: "",
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
    this.values = defaults("test");
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

  /** Show the view of the address; without one, the first test questions. */
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

  /** The address of these values, without defaults. */
  address(values, entry) {
    const own = Object.entries(values).filter(
      ([name, value]) => name === "view" || value !== defaults(values.view)[name]);
    return ADDRESS + new URLSearchParams([...own, ...(entry ? [["item", entry.key]] : [])]);
  }

  /** Replaces the address instead of adding one, so that "back" leaves the page, not the last key press. */
  remember() {
    clearTimeout(this.later); // browsers limit how often an address may change
    this.later = setTimeout(() => history.replaceState(
      null, "", this.address(this.values, this.list.entries[this.list.active])), 100);
  }

  /** Put values into the form; unknown names and values become the default. */
  set(values, item) {
    const view = values.view in this.traces.entries ? values.view : "test";
    const known = Object.keys(defaults(view)).filter((name) => name in values);
    this.values = { ...defaults(view), ...Object.fromEntries(known.map((name) => [name, values[name]])), view };
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

  /** Called when the user changes a field. */
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

  /** A comparison needs two different runs: if none is selected, take the last row of the tables. */
  pairUp() {
    const { against, run, view } = this.values;
    if (!against || view !== "test" || (run && run !== against)) return;
    const other = this.traces.answerSets.findLast((name) => name.value !== against);
    this.values.run = this.form.elements.run.value = other?.value ?? "";
  }

  /** Fill each select from the entries of the view; a select with a single choice is hidden. */
  fillChoices() {
    const { view } = this.values, { traces } = this;
    const entries = traces.entries[view];
    const different = (name) => [...new Set(entries.map((entry) => entry[name]))].filter((value) => value !== "" && value !== undefined);
    const plain = (name) => different(name).map((value) => [value, title(traces, value)]);
    const runs = view === "test" ? traces.answerSets.map((name) => [name.value, name.label])
      : different("run").map((k) => [traces.runs[k].name, traces.runs[k].label]);
    const earlier = view === "train" && entries.some((entry) => entry.before) ? [["before", "previous step, same run"]] : [];
    const choices = {
      run: runs, against: [...earlier, ...(runs.length > 1 ? runs : [])], set: plain("set"), control: plain("control"),
      // if each test set is one modality, both filters are the same
      modality: entries.every((entry) => entry.modality === entry.set) ? [] : plain("modality"),
      type: plain("type"),
      step: different("step").sort((a, b) => a - b).map((n) => [n, n]),
    };
    for (const [name, values] of Object.entries(choices)) {
      const field = this.form.elements[name];
      const all = make("option", { value: "" }, field.dataset.all);
      field.replaceChildren(all, ...values.map(([value, label]) => make("option", { value }, String(label))));
      field.closest("label").hidden = values.length < (name === "against" ? 1 : 2);
    }
    for (const option of this.form.querySelectorAll("option[data-view]")) {
      option.hidden = option.disabled = option.dataset.view !== view;
    }
  }

  search(item) {
    this.form.elements.change.closest("label").hidden = !this.values.against;
    this.passing = search(this.traces, this.values);
    this.words = wordsOf(this.values.q);
    const all = this.traces.entries[this.values.view].length;
    const noun = this.values.view === "test" ? "test answer" : "training group";
    this.count.textContent = `${this.passing.length.toLocaleString("en")} of ${count(all, noun)}`;
    this.list.show(this.passing, item);
  }

  open(entry) {
    const link = (one) => this.address({ ...defaults(one.view), control: one.control ?? "" }, one);
    const show = { test: showTest, train: showGroup };
    this.detail.replaceChildren(...(entry ? show[entry.view](this.traces, entry, this.words, link)
      : [make("p", { class: "small" }, "No trace passes these filters.")]).filter(Boolean));
    this.detail.scrollTop = 0;
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || this.help.open) return;
    const typing = event.target.matches("input:not([type=radio]), select, textarea");
    const leaves = event.key === "Escape" || (event.key === "Enter" && event.target === this.form.elements.q);
    if (leaves && this.section.contains(event.target)) {
      event.preventDefault(); // Escape clears a search field
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
    event.preventDefault(); // else "/" is typed, and arrows scroll the page
    act();
  }

  /** Single-letter keys disturb speech input, so the user can switch them off. */
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
