// Which entries pass the filters, and in what order.

/** The words of a search; what stands in double quotes is one word. */
function wordsOf(search) {
  return [...search.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((found) => found[1] ?? found[2]);
}

/**
 * For each word, which texts of the pool hold it: each text is read once, however many entries show it.
 * While a word is being typed, only texts that held its beginning are read again.
 */
function textHits(traces, words) {
  traces.lower ??= traces.texts.map((text) => text.toLowerCase());
  const before = traces.hits ?? new Map();
  traces.hits = new Map(words.map((word) => {
    const part = [...before.keys()].findLast((known) => word.includes(known));
    if (part === word) return [word, before.get(word)];
    const maybe = before.get(part);
    return [word, Uint8Array.from(traces.lower, (text, k) => (!maybe || maybe[k]) && text.includes(word))];
  }));
  return [...traces.hits.values()];
}

/** Every word stands somewhere in the entry. */
function holds(entry, hits) {
  return hits.every((hit) => entry.strings.some((number) => number >= 0 && hit[number]));
}

const TEST_OUTCOMES = {
  right: (marks) => marks.every((mark) => mark === 1),
  wrong: (marks) => marks.every((mark) => mark === 0),
  mixed: (marks) => marks.includes(0) && marks.includes(1),
};

/** Right, wrong, mixed, unread or cut, judged by the chosen reply or over all that were asked. */
function testOutcome(traces, entry, outcome, chosen) {
  const { replies } = traces.tests;
  const asked = replies.map((_, k) => k).filter(
    (k) => entry.marks[k] !== NOTHING && (chosen === NOTHING || k === chosen));
  const unread = (k) => replies[k].answer[entry.row] === NOTHING && !undecided(entry.marks[k]);
  if (outcome === "unread") return asked.some(unread);
  if (outcome === "truncated") return asked.some((k) => replies[k].truncated[entry.row]);
  return asked.length > 0 && TEST_OUTCOMES[outcome](asked.map((k) => entry.marks[k]));
}

const GROUP_OUTCOMES = {
  right: (entry) => entry.right === entry.count,
  wrong: (entry) => entry.right === 0,
  mixed: (entry) => entry.right > 0 && entry.right < entry.count,
  flat: (entry) => entry.spread === 0,
  unread: (entry) => entry.unread > 0,
  truncated: (entry) => entry.truncated > 0,
};

/** The change from `before` to `after`, two numbers of which more is better. */
function changed(before, after, change) {
  if (change === "gained") return after > before;
  if (change === "lost") return after < before;
  return after !== before;
}

function testChanged(traces, entry, form, run, against) {
  if (run < 0 || against < 0 || entry.marks[run] < 0 || entry.marks[against] < 0) return false;
  if (form.change !== "other") return changed(entry.marks[against], entry.marks[run], form.change);
  const { replies } = traces.tests;
  return replies[run].answer[entry.row] !== replies[against].answer[entry.row];
}

/** The group that one is compared with: the same question the last time before, or in another run. */
function counterpart(traces, entry, against) {
  if (against === "before") return entry.before;
  const run = traces.runs.findIndex((one) => one.name === against);
  return run === entry.run ? null : traces.lastAsked.get(`${run}|${entry.id}`) ?? null;
}

function groupChanged(traces, entry, form) {
  const other = counterpart(traces, entry, form.against);
  if (!other || other.question !== entry.question) return false;
  return changed(other.right / other.count, entry.right / entry.count, form.change);
}

function passesTest(traces, form) {
  const number = (value) => traces.replyNames.findIndex((name) => name.value === value);
  const run = number(form.run), against = number(form.against);
  return (entry) =>
    (!form.set || entry.set === form.set) &&
    (!form.control || entry.control === form.control) &&
    (!form.outcome || testOutcome(traces, entry, form.outcome, run)) &&
    (!form.against || testChanged(traces, entry, form, run, against));
}

function passesGroup(traces, form) {
  return (entry) =>
    (!form.run || traces.runs[entry.run].name === form.run) &&
    (!form.step || entry.step === Number(form.step)) &&
    (!form.outcome || GROUP_OUTCOMES[form.outcome]?.(entry)) &&
    (!form.against || groupChanged(traces, entry, form));
}

const SORTS = {
  test: {
    file: (entry) => entry.row,
    hard: (entry) => entry.right / (entry.asked || 1),
    tokens: (entry) => entry.tokens,
    id: (entry) => entry.id,
  },
  train: {
    file: (entry) => entry.row,
    step: (entry) => entry.step,
    hard: (entry) => entry.right / entry.count,
    mean: (entry) => entry.mean,
    spread: (entry) => entry.spread,
    tokens: (entry) => entry.tokens,
    id: (entry) => entry.id,
  },
};

/** Entries that the form lets through, sorted; ties stay in the order of the files. */
function search(traces, form) {
  const passes = form.view === "test" ? passesTest(traces, form) : passesGroup(traces, form);
  const hits = textHits(traces, wordsOf(form.q));
  const found = traces.entries[form.view].filter((entry) =>
    (!form.modality || entry.modality === form.modality) &&
    (!form.type || entry.type === form.type) &&
    passes(entry) && holds(entry, hits));
  const value = SORTS[form.view][form.sort] ?? SORTS[form.view].file;
  const sign = form.order === "down" ? -1 : 1;
  return found.sort((a, b) => {
    const x = value(a), y = value(b);
    return x < y ? -sign : x > y ? sign : a.row - b.row;
  });
}
