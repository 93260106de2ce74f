// Draws an entry: as a row of the list, and in full.

const LETTERS = "ABCDEFGHIJ";
const SIGNS = { right: "✓", wrong: "✗", undecided: "?", "no answer": "·" };
const WORDS = { 1: "right", 0: "wrong", [NOTHING]: "no answer" };
const wordOf = (mark) => WORDS[mark] ?? "undecided";

const title = (traces, name) => traces.names[name] ?? name;
const fixed = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
const signed = (value) => (value === null ? "–" : (value > 0 ? "+" : "") + fixed(value));
const badge = (mark, text) => make("span", { class: `badge ${wordOf(Number(mark))}` }, text);
const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

function testRow(traces, entry) {
  const names = traces.answerSets;
  const words = entry.marks.map((mark, k) => `${names[k].label} ${wordOf(mark)}`).join(", ");
  const control = entry.control === PLAIN ? "" : ` · ${entry.control}`;
  return [
    make("span", { class: "summary" }, entry.question),
    make("span", { class: "about" }, `${title(traces, entry.set)}${control} · ${entry.type || entry.id}`),
    make("span", { class: "marks", role: "img", "aria-label": words },
      entry.marks.map((mark) => make("i", { class: wordOf(mark).replace(" ", "-") }, SIGNS[wordOf(mark)]))),
  ];
}

function groupRow(traces, entry) {
  const run = traces.runs.length > 1 ? `${traces.runs[entry.run].label} · ` : "";
  return [
    make("span", { class: "summary" }, entry.question),
    make("span", { class: "about" }, `${run}step ${entry.step} · mean ${fixed(entry.mean)}${entry.range ? "" : " · zero advantage"}`),
    make("span", { class: "marks" }, `${entry.right}/${entry.count} right`),
  ];
}

/** Model text with its tags dimmed and the words of the search highlighted. */
function response(traces, number, words) {
  const text = traces.textOf(number);
  if (!text.trim()) return make("div", { class: "response" }, make("span", { class: "tag" }, "(white space only)"));
  const safe = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const parts = text.split(new RegExp(`(</?(?:think|answer)>|\\n{4,}${safe.length ? `|${safe.join("|")}` : ""})`, "i"));
  return make("div", { class: "response", tabindex: "0" }, parts.map((part, k) => {
    if (k % 2 === 0) return part; // between two matches of the pattern
    if (part.startsWith("\n")) return make("span", { class: "tag" }, `\n(${part.length} line breaks)\n`);
    return /^<\/?(think|answer)>$/i.test(part) ? make("span", { class: "tag" }, part) : make("mark", {}, part);
  }));
}

function image(traces, number, entry) {
  if (number === NOTHING) return null;
  return make("div", { class: "picture" },
    make("img", { src: traces.pictures[number], alt: `Image of question ${entry.id}` }));
}

function optionList(traces, options, gold) {
  if (!options.length) return make("ul", { class: "options" }, make("li", { class: "gold" }, `${gold} ✓ gold`));
  return make("ul", { class: "options" }, options.map((option, k) =>
    make("li", { class: LETTERS[k] === gold ? "gold" : null },
      `${LETTERS[k]}) ${traces.textOf(option)}${LETTERS[k] === gold ? " ✓ gold" : ""}`)));
}

function promptCard(traces, columns, entry, about) {
  const shown = image(traces, columns.picture[entry.row], entry);
  return make("div", { class: shown ? "prompt" : "prompt bare" }, shown,
    make("div", {},
      make("p", { class: "small" }, ...about, shown ? null : " · image not saved"),
      make("h3", { class: "question" }, entry.question),
      optionList(traces, columns.options[entry.row], traces.textOf(columns.gold[entry.row]))));
}

const CONTROLS = {
  blank: "uniform grey in place of this image",
  permuted: "the options in another order",
  "reasoning-cut": "the response starts with the answer tag, without reasoning",
};

/** What a control changed, and whose image this is. */
function underControl(traces, entry) {
  if (entry.control === PLAIN) return null;
  const seen = traces.textOf(traces.tests.seen[entry.row]);
  const change = seen !== entry.id ? `the image of question ${seen} instead, shown here`
    : CONTROLS[entry.control] ?? "a part of the question is changed";
  return make("p", { class: "caveat" }, `Control “${entry.control}”: ${change}.`);
}

/** The same question under the other controls. */
function otherControls(traces, entry, link) {
  const others = traces.entries.test.filter(
    (one) => one.id === entry.id && one.set === entry.set && one.control !== entry.control);
  if (!others.length) return null;
  return make("p", { class: "small" }, "The same question under ",
    others.flatMap((one, k) => [k ? ", " : "", make("a", { href: link(one) }, one.control)]), ".");
}

function answerCard(traces, entry, k, words) {
  const columns = traces.tests.answers[k], name = traces.answerSets[k], { row } = entry;
  const mark = entry.marks[k];
  if (mark === NOTHING) return null;
  const lenient = columns.lenient[row] && !mark ? ", right if parsed leniently" : "";
  const verdict = undecided(mark) ? `undecided, a chance of ${fixed(mark)}` : WORDS[mark] + lenient;
  const own = columns.options[row];
  const parsed = undecided(mark) ? "several options are equally frequent"
    : columns.answer[row] === NOTHING ? "no answer parsed" : `parsed as ${traces.textOf(columns.answer[row])}`;
  return make("div", { class: "answer", style: `--c: var(--series-${name.colour})` },
    make("h4", {}, make("span", {}, name.label), badge(mark, verdict)),
    own ? make("div", { class: "small" }, "Options in this order:",
      optionList(traces, own, traces.textOf(columns.gold[row]))) : null,
    response(traces, columns.text[row], words),
    make("p", { class: "small" }, `${parsed} · ${columns.tokens[row]} tokens${columns.truncated[row] ? " · truncated" : ""}`));
}

function showTest(traces, entry, words, link) {
  const about = [[title(traces, entry.set), entry.modality === entry.set ? "" : entry.modality, entry.type]
    .filter(Boolean).join(" · ") + " · ", make("code", {}, entry.id)];
  return [
    promptCard(traces, traces.tests, entry, about), underControl(traces, entry), otherControls(traces, entry, link),
    make("div", { class: "answers" }, entry.marks.map((_, k) => answerCard(traces, entry, k, words))),
  ];
}

/** The same question at other steps and in other runs. */
function otherTimes(traces, entry, link) {
  const others = traces.entries.train.filter((one) => one.id === entry.id && one !== entry && one.question === entry.question);
  if (!others.length) return null;
  return make("p", { class: "small" }, "The same question in ", others.flatMap((one, k) => [k ? ", " : "",
    make("a", { href: link(one) }, `${traces.runs[one.run].label}, step ${one.step} (${one.right}/${one.count} right)`)]), ".");
}

function completionRow(traces, columns, terms, at, largest, words) {
  const right = columns.right[at], answer = traces.textOf(columns.answer[at]), advantage = columns.advantage[at];
  const width = `${(50 * Math.abs(advantage ?? 0)) / largest}%`;
  return make("tr", {},
    make("th", { scope: "row" }, String(columns.number[at])),
    make("td", { class: "text" }, response(traces, columns.text[at], words),
      make("small", {}, `${columns.tokens[at]} tokens${columns.truncated[at] ? ", truncated" : ""}`)),
    make("td", {}, columns.answer[at] === NOTHING ? badge(false, "none") : badge(right, `${answer} ${WORDS[right]}`)),
    terms.map((term) => make("td", {}, fixed(columns.rewards[term][at]))),
    make("td", {}, fixed(columns.total[at])),
    make("td", {}, signed(advantage), make("span", { class: "bar", "aria-hidden": "true" },
      make("i", { class: advantage > 0 ? "up" : "down", style: `width: ${width}` }))));
}

function showGroup(traces, entry, words, link) {
  const columns = traces.groups.completions, first = traces.groups.first[entry.row];
  const rows = Array.from({ length: entry.count }, (_, k) => first + k);
  const terms = Object.keys(columns.rewards).filter((term) => rows.some((at) => columns.rewards[term][at] !== null));
  const largest = Math.max(1e-9, ...rows.map((at) => Math.abs(columns.advantage[at] ?? 0)));
  const head = (text, kind) => make("th", { scope: "col", class: kind ?? null }, text);
  const truncated = entry.truncated ? ` · ${entry.truncated} truncated` : "";
  return [
    promptCard(traces, traces.groups, entry, [
      `${traces.runs[entry.run].label} · step ${entry.step}${entry.type ? ` · ${entry.type}` : ""} · `, make("code", {}, entry.id)]),
    make("p", { class: "small" }, `${entry.right} of ${entry.count} right · mean total reward ${fixed(entry.mean)}` +
      `${entry.range ? "" : " · zero advantage, no gradient"}${truncated}`),
    otherTimes(traces, entry, link),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Completions of step ${entry.step}` },
      make("table", {},
        make("thead", {}, make("tr", {}, head("#"), head("Completion", "text"), head("Answer"),
          terms.map((term) => head(term.replaceAll("_", " "))), head("Total"), head("Advantage"))),
        make("tbody", {}, rows.map((at) => completionRow(traces, columns, terms, at, largest, words))))),
  ];
}
