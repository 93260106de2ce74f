// Filters and sorts the entries.

/** The words of a search; a phrase in double quotes is one word. */
function wordsOf(search) {
  return [...search.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((match) => match[1] ?? match[2]);
}

/**
 * For each word, the texts that contain it: each text is searched once, however many entries show it.
 * While a word is typed, only texts that contain its beginning are searched again.
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

/** Whether every word occurs in the entry. */
function matches(entry, hits) {
  return hits.every((hit) => entry.strings.some((number) => number >= 0 && hit[number]));
}

const TEST_OUTCOMES = {
  right: (marks) => marks.every((mark) => mark === 1),
  wrong: (marks) => marks.every((mark) => mark === 0),
  mixed: (marks) => marks.includes(0) && marks.includes(1),
};

/** Whether the entry has the outcome: in the selected answer set, or over all of them. */
function testOutcome(traces, entry, outcome, selected) {
  const { answers } = traces.tests;
  const sets = answers.map((_, k) => k).filter(
    (k) => entry.marks[k] !== NOTHING && (selected === NOTHING || k === selected));
  const unparsed = (k) => answers[k].answer[entry.row] === NOTHING && !undecided(entry.marks[k]);
  if (outcome === "unparsed") return sets.some(unparsed);
  if (outcome === "truncated") return sets.some((k) => answers[k].truncated[entry.row]);
  return sets.length > 0 && TEST_OUTCOMES[outcome](sets.map((k) => entry.marks[k]));
}

const GROUP_OUTCOMES = {
  right: (entry) => entry.right === entry.count,
  wrong: (entry) => entry.right === 0,
  mixed: (entry) => entry.right > 0 && entry.right < entry.count,
  zero_advantage: (entry) => entry.range === 0,
  unparsed: (entry) => entry.unparsed > 0,
  truncated: (entry) => entry.truncated > 0,
};

/** Whether two scores, higher is better, changed this way. */
function changed(before, after, change) {
  if (change === "gained") return after > before;
  if (change === "lost") return after < before;
  return after !== before;
}

function testChanged(traces, entry, form, run, against) {
  if (run < 0 || against < 0 || entry.marks[run] < 0 || entry.marks[against] < 0) return false;
  if (form.change !== "other") return changed(entry.marks[against], entry.marks[run], form.change);
  const { answers } = traces.tests;
  return answers[run].answer[entry.row] !== answers[against].answer[entry.row];
}

/** The group to compare with: the same question at its previous step, or in another run. */
function counterpart(traces, entry, against) {
  if (against === "before") return entry.before;
  const run = traces.runs.findIndex((one) => one.name === against);
  return run === entry.run ? null : traces.latest.get(`${run}|${entry.id}`) ?? null;
}

function groupChanged(traces, entry, form) {
  const other = counterpart(traces, entry, form.against);
  if (!other || other.question !== entry.question) return false;
  return changed(other.right / other.count, entry.right / entry.count, form.change);
}

function passesTest(traces, form) {
  const number = (value) => traces.answerSets.findIndex((name) => name.value === value);
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
    hard: (entry) => entry.right / (entry.answered || 1),
    tokens: (entry) => entry.tokens,
    id: (entry) => entry.id,
  },
  train: {
    file: (entry) => entry.row,
    step: (entry) => entry.step,
    hard: (entry) => entry.right / entry.count,
    mean: (entry) => entry.mean,
    range: (entry) => entry.range,
    tokens: (entry) => entry.tokens,
    id: (entry) => entry.id,
  },
};

/** Entries that pass the form's filters, sorted; ties keep the order of the files. */
function search(traces, form) {
  const passes = form.view === "test" ? passesTest(traces, form) : passesGroup(traces, form);
  const hits = textHits(traces, wordsOf(form.q));
  const passing = traces.entries[form.view].filter((entry) =>
    (!form.modality || entry.modality === form.modality) &&
    (!form.type || entry.type === form.type) &&
    passes(entry) && matches(entry, hits));
  const value = SORTS[form.view][form.sort] ?? SORTS[form.view].file;
  const sign = form.order === "down" ? -1 : 1;
  return passing.sort((a, b) => {
    const x = value(a), y = value(b);
    return x < y ? -sign : x > y ? sign : a.row - b.row;
  });
}
