"""Which questions and which groups of completions a page shows: picked by rule, never by hand."""

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from medvlm_r1.data.sample import LETTERS
from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.run_folder import Run

_PNG = "data:image/png;base64,"
LARGEST = 448  # pixels of an embedded picture's longer side: sharp at the size shown, small in the file


@dataclass(frozen=True)
class Reply:
    """One method's answer to one question."""

    label: str
    text: str
    letter: str | None
    correct: bool
    lenient: bool
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Question:
    """One test question with every method's answer."""

    test_set: str
    sample_id: str
    kind: str
    question: str
    options: list[tuple[str, str]]
    gold: str
    image: str | None
    replies: list[Reply]


@dataclass(frozen=True)
class Pattern:
    """How often one pattern of right and wrong occurs over all test questions."""

    right: list[tuple[str, bool]]
    count: int
    share: float


@dataclass(frozen=True)
class Group:
    """All completions of one prompt at one optimiser step."""

    step: int
    sample_id: str
    question: str
    options: list[tuple[str, str]]
    gold: str
    image: str | None
    terms: list[str]
    completions: list[dict]
    spread: bool


def questions(c: Comparison, per_set: int = 2) -> tuple[list[Question], list[Pattern]]:
    """Questions that show how the methods differ, from each row's first seed.

    Rule: test set by test set, walk the patterns of right and wrong (which methods hit), rarest
    repetition first on the page so far, and take the lowest sample id; questions whose picture was
    kept come before those without.

    Returns:
        At most ``per_set`` questions for each test set, and the count of each pattern.
    """
    answers = {row.label: {t: row.runs[0].answers(t) for t in c.test_sets} for row in c.groups}
    patterns: Counter[tuple[bool, ...]] = Counter()
    shown: Counter[tuple[bool, ...]] = Counter()
    chosen = []
    for test_set in c.test_sets:
        tables = [answers[row.label][test_set] for row in c.groups]
        found = dict(zip(tables[0].index, zip(*(t["correct"] for t in tables), strict=True), strict=True))
        patterns.update(found.values())
        pictures = {k: _picture(c, k) for k in found}
        left = set(found)
        for _ in range(min(per_set, len(found))):
            pick = min(left, key=lambda k: (pictures[k] is None, shown[found[k]], len(set(found[k])) == 1, k))
            left.remove(pick)
            shown[found[pick]] += 1
            chosen.append(_question(c, test_set, pick, answers, pictures[pick]))
    total = patterns.total()
    counted = [
        Pattern([(row.label, bool(r)) for row, r in zip(c.groups, p, strict=True)], n, n / total)
        for p, n in patterns.most_common()
    ]
    return chosen, counted


def groups(run: Run, per_step: int = 1) -> list[Group]:
    """Groups of the first and the last traced step.

    Rule: of each step the first groups in file order whose totals differ (only they carry a
    gradient), then the first of the others.
    """
    steps = run.traced_steps
    chosen = []
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        by_prompt: dict[str, list[dict]] = {}
        for row in run.rollouts(step):
            by_prompt.setdefault(row["sample_id"], []).append(row)
        found = [_group(run, step, rows) for rows in by_prompt.values()]
        chosen += sorted(found, key=lambda g: not g.spread)[:per_step]
    return chosen


def data_uri(path: Path) -> str:
    """A picture inside the page, at most ``LARGEST`` pixels long; one that fits stands as it is kept."""
    with Image.open(path) as picture:
        if max(picture.size) <= LARGEST and picture.format == "PNG":
            return _PNG + base64.b64encode(path.read_bytes()).decode()
        small = picture.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return _PNG + base64.b64encode(out.getvalue()).decode()


def _picture(c: Comparison, sample_id: str) -> Path | None:
    return next((p for row in c.groups for run in row.runs if (p := run.image(sample_id))), None)


def _question(c: Comparison, test_set: str, sample_id: str, answers: dict, picture: Path | None) -> Question:
    first = answers[c.groups[0].label][test_set].loc[sample_id]
    replies = []
    for row in c.groups:
        said = answers[row.label][test_set].loc[sample_id]
        letter = said["answer"] if isinstance(said["answer"], str) else None
        replies.append(
            Reply(
                row.label,
                said["text"],
                letter,
                bool(said["correct"]),
                bool(said["correct_lenient"]),
                int(said["tokens"]),
                bool(said["truncated"]),
            )
        )
    return Question(
        test_set=test_set,
        sample_id=sample_id,
        kind=str(first["question_type"] or ""),
        question=first["question"],
        options=list(zip(LETTERS, first["options"], strict=False)),
        gold=first["gold"],
        image=data_uri(picture) if picture else None,
        replies=replies,
    )


def _group(run: Run, step: int, rows: list[dict]) -> Group:
    first = rows[0]
    picture = run.image(first["sample_id"])
    return Group(
        step=step,
        sample_id=first["sample_id"],
        question=first["question"],
        options=list(zip(LETTERS, first["options"], strict=False)),
        gold=first["gold"],
        image=data_uri(picture) if picture else None,
        terms=list(first["rewards"]),
        completions=sorted(
            ({"right": r["answer"] == r["gold"]} | r for r in rows), key=lambda r: r["completion"]
        ),
        spread=max(r["total"] for r in rows) > min(r["total"] for r in rows),
    )
