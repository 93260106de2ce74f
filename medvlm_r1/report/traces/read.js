// Unpacks the columns that traces.py packed, and makes one object per entry of the list.

const NOTHING = -1; // in a column that points into the pool of texts
const PLAIN = "image"; // the control in which nothing was changed
const undecided = (mark) => mark > 0 && mark < 1; // the text prior likes several options: the chance of a hit

/** base64 of gzip of JSON -> object. A page from disk may fetch nothing, so the browser's own parts do it. */
async function unpack(base64) {
  const packed = atob(base64.trim());
  const bytes = new Uint8Array(packed.length);
  for (let k = 0; k < packed.length; k++) bytes[k] = packed.charCodeAt(k);
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

/** One entry per test question and control. `marks`, by reply: right (1), wrong (0), undecided, not asked (-1). */
function testEntries({ tests, texts, runs }) {
  const say = (number) => (number === NOTHING ? "" : texts[number]);
  const { replies } = tests;
  const names = replies.map((reply) => {
    const { label, name, colour } = runs[reply.run];
    const step = reply.name === name ? "" : ` at step ${reply.step}`; // evaluated at several
    return { label: label + step, value: reply.name, colour };
  });
  const entries = tests.id.map((id, row) => {
    const marks = replies.map((reply) => reply.right[row]);
    const there = replies.filter((reply) => reply.right[row] !== NOTHING);
    const entry = {
      view: "test", row, marks, id: say(id),
      set: say(tests.set[row]), control: say(tests.control[row]),
      modality: say(tests.modality[row]), type: say(tests.type[row]), question: say(tests.question[row]),
      right: marks.filter((mark) => mark === 1).length, asked: there.length,
      tokens: Math.max(0, ...there.map((reply) => reply.tokens[row])),
      strings: [id, tests.question[row], ...tests.options[row],
        ...there.flatMap((reply) => [reply.text[row], reply.answer[row]])],
    };
    entry.key = `${entry.set}|${entry.control}|${entry.id}`;
    return entry;
  });
  return { entries, names };
}

/** One entry per prompt and training step, with what its completions sum up to. */
function groupEntries({ groups, texts, runs }) {
  const say = (number) => (number === NOTHING ? "" : texts[number]);
  const { completions } = groups;
  const last = new Map(); // run and question -> the entry of the last time that it was asked
  const entries = groups.id.map((id, row) => {
    const first = groups.first[row], count = groups.count[row];
    const cut = (column) => column.slice(first, first + count);
    const sum = (column) => cut(column).reduce((total, value) => total + value, 0);
    const totals = cut(completions.total);
    const entry = {
      view: "train", row, id: say(id), run: groups.run[row], step: groups.step[row],
      modality: say(groups.modality[row]), type: say(groups.type[row]), question: say(groups.question[row]),
      count, right: sum(completions.right), mean: sum(completions.total) / count,
      spread: Math.max(...totals) - Math.min(...totals),
      tokens: sum(completions.tokens) / count, truncated: sum(completions.truncated),
      unread: cut(completions.answer).filter((answer) => answer === NOTHING).length,
      strings: [id, groups.question[row], ...groups.options[row],
        ...cut(completions.text), ...cut(completions.answer)],
    };
    entry.key = `${runs[entry.run].name}|${entry.step}|${entry.id}`;
    const asked = `${entry.run}|${entry.id}`;
    entry.before = last.get(asked) ?? null;
    last.set(asked, entry);
    return entry;
  });
  return { entries, last };
}

/** What the whole browser works on. */
function prepare(data, pictures) {
  const tests = testEntries(data), groups = groupEntries(data);
  return {
    ...data, pictures, replyNames: tests.names, lastAsked: groups.last,
    entries: { test: tests.entries, train: groups.entries },
    say: (number) => (number === NOTHING ? "" : data.texts[number]),
  };
}
