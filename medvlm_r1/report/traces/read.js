// Unpacks the columns of traces/pack.py, and makes one object per entry of the list.

const NOTHING = -1; // no text, in a column of numbers of texts
const PLAIN = "image"; // the control that changes nothing
const undecided = (mark) => mark > 0 && mark < 1; // several options tie in the text prior: the chance of a right answer

/** base64 of gzip of JSON -> object. A page opened from disk can fetch nothing, so the data is inside it. */
async function unpack(base64) {
  const packed = atob(base64.trim());
  const bytes = new Uint8Array(packed.length);
  for (let k = 0; k < packed.length; k++) bytes[k] = packed.charCodeAt(k);
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

/** One entry per test question and control. `marks`, by answer set: right (1), wrong (0), undecided, no answer (-1). */
function testEntries({ tests, texts, runs }) {
  const textOf = (number) => (number === NOTHING ? "" : texts[number]);
  const { answers } = tests;
  const names = answers.map((set) => {
    const { label, name, colour } = runs[set.run];
    const step = set.name === name ? "" : ` at step ${set.step}`; // evaluated at several steps
    return { label: label + step, value: set.name, colour };
  });
  const entries = tests.id.map((id, row) => {
    const marks = answers.map((set) => set.right[row]);
    const answered = answers.filter((set) => set.right[row] !== NOTHING);
    const entry = {
      view: "test", row, marks, id: textOf(id),
      set: textOf(tests.set[row]), control: textOf(tests.control[row]),
      modality: textOf(tests.modality[row]), type: textOf(tests.type[row]), question: textOf(tests.question[row]),
      right: marks.filter((mark) => mark === 1).length, answered: answered.length,
      tokens: Math.max(0, ...answered.map((set) => set.tokens[row])),
      strings: [id, tests.question[row], ...tests.options[row],
        ...answered.flatMap((set) => [set.text[row], set.answer[row]])],
    };
    entry.key = `${entry.set}|${entry.control}|${entry.id}`;
    return entry;
  });
  return { entries, names };
}

/** One entry per prompt and training step, with statistics of its completions. */
function groupEntries({ groups, texts, runs }) {
  const textOf = (number) => (number === NOTHING ? "" : texts[number]);
  const { completions } = groups;
  const latest = new Map(); // run and question -> entry of its latest step
  const entries = groups.id.map((id, row) => {
    const first = groups.first[row], count = groups.count[row];
    const slice = (column) => column.slice(first, first + count);
    const sum = (column) => slice(column).reduce((total, value) => total + value, 0);
    const totals = slice(completions.total);
    const entry = {
      view: "train", row, id: textOf(id), run: groups.run[row], step: groups.step[row],
      modality: textOf(groups.modality[row]), type: textOf(groups.type[row]), question: textOf(groups.question[row]),
      count, right: sum(completions.right), mean: sum(completions.total) / count,
      range: Math.max(...totals) - Math.min(...totals),
      tokens: sum(completions.tokens) / count, truncated: sum(completions.truncated),
      unparsed: slice(completions.answer).filter((answer) => answer === NOTHING).length,
      strings: [id, groups.question[row], ...groups.options[row],
        ...slice(completions.text), ...slice(completions.answer)],
    };
    entry.key = `${runs[entry.run].name}|${entry.step}|${entry.id}`;
    const question = `${entry.run}|${entry.id}`;
    entry.before = latest.get(question) ?? null;
    latest.set(question, entry);
    return entry;
  });
  return { entries, latest };
}

/** The data of all parts of the browser. */
function prepare(data, pictures) {
  const tests = testEntries(data), groups = groupEntries(data);
  return {
    ...data, pictures, answerSets: tests.names, latest: groups.latest,
    entries: { test: tests.entries, train: groups.entries },
    textOf: (number) => (number === NOTHING ? "" : data.texts[number]),
  };
}
