"""Test questions and completion groups that the page prints, chosen by rule, never by hand."""

import base64
import io
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from medvlm_r1.data.sample import LETTERS
from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.run_folder import Run

_PNG = "data:image/png;base64,"
LARGEST = 448  # pixels of an embedded image's longer side: sharp at its size on the page, small in the file


@dataclass(frozen=True)
class Answer:
    """The answer of one run group to one question."""

    label: str
    text: str
    letter: str | None
    correct: bool
    lenient: bool
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Question:
    """One test question with the answer of every run group; ``image`` is a data URI."""

    test_set: str
    sample_id: str
    type: str
    question: str
    options: list[tuple[str, str]]
    gold: str
    image: str | None
    answers: list[Answer]


@dataclass(frozen=True)
class Pattern:
    """How often one pattern of right and wrong, group by group, occurs over all test questions."""

    right: tuple[bool, ...]
    count: int
    share: float


@dataclass(frozen=True)
class CompletionGroup:
    """All completions of one prompt at one optimiser step.

    Attributes:
        step: optimiser step.
        sample_id: of the training question.
        question: its text.
        options: letter and text of each option.
        gold: letter of the right option.
        image: data URI, if the run saved the image.
        terms: names of the reward terms.
        completions: rows of ``rollouts/``, with ``right`` and the bar's ``width`` in percent added.
    """

    step: int
    sample_id: str
    question: str
    options: list[tuple[str, str]]
    gold: str
    image: str | None
    terms: list[str]
    completions: list[dict]

    @property
    def right(self) -> int:
        """Number of right completions."""
        return sum(row["right"] for row in self.completions)

    @property
    def mean(self) -> float:
        """Mean total reward."""
        return statistics.fmean(row["total"] for row in self.completions)

    @property
    def reward_std(self) -> float:
        """Standard deviation of the total reward."""
        return statistics.pstdev(row["total"] for row in self.completions)


def choose_questions(c: Comparison, per_set: int = 2) -> tuple[list[Question], list[Pattern]]:
    """Questions that show how the run groups differ, answered by each group's first seed.

    Rule: for each test set take questions one by one. Questions with a saved image come first, then those
    whose pattern of right and wrong is rarest among the chosen ones, then those on which the groups differ,
    then the lowest sample id.

    Returns:
        At most ``per_set`` questions for each test set, and the count of each pattern.
    """
    answers = {g.label: {t: g.runs[0].answers(t) for t in c.test_sets} for g in c.groups}
    counts: Counter[tuple[bool, ...]] = Counter()
    shown: Counter[tuple[bool, ...]] = Counter()
    chosen = []
    for test_set in c.test_sets:
        tables = [answers[group.label][test_set] for group in c.groups]
        outcomes = zip(*(table["correct"] for table in tables), strict=True)
        patterns = dict(zip(tables[0].index, outcomes, strict=True))
        counts.update(patterns.values())
        images = {sample_id: _image(c, sample_id) for sample_id in patterns}
        remaining = set(patterns)
        for _ in range(min(per_set, len(patterns))):
            best = min(
                remaining,
                key=lambda k: (images[k] is None, shown[patterns[k]], len(set(patterns[k])) == 1, k),
            )
            remaining.remove(best)
            shown[patterns[best]] += 1
            chosen.append(_question(c, test_set, best, answers, images[best]))
    total = counts.total()
    return chosen, [Pattern(tuple(map(bool, p)), n, n / total) for p, n in counts.most_common()]


def choose_completion_groups(run: Run, per_step: int = 1) -> list[CompletionGroup]:
    """Completion groups of the first and the last traced step.

    Rule: of each step the first groups in file order whose totals differ (only they have a gradient), then
    the first of the others.
    """
    steps = run.traced_steps
    chosen = []
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        by_prompt: dict[str, list[dict]] = {}
        for row in run.rollouts(step):
            by_prompt.setdefault(row["sample_id"], []).append(row)
        groups = [_completion_group(run, step, rows) for rows in by_prompt.values()]
        chosen += sorted(groups, key=lambda group: group.reward_std == 0)[:per_step]
    return chosen


def data_uri(path: Path) -> str:
    """An image file as a data URI, resized to at most ``LARGEST`` pixels; a PNG that fits is unchanged."""
    with Image.open(path) as image:
        if max(image.size) <= LARGEST and image.format == "PNG":
            return _PNG + base64.b64encode(path.read_bytes()).decode()
        small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return _PNG + base64.b64encode(out.getvalue()).decode()


def _image(c: Comparison, sample_id: str) -> Path | None:
    return next((path for run in c.runs if (path := run.image(sample_id))), None)


def _question(c: Comparison, test_set: str, sample_id: str, answers: dict, image: Path | None) -> Question:
    rows = {group.label: answers[group.label][test_set].loc[sample_id] for group in c.groups}
    first = next(iter(rows.values()))
    return Question(
        test_set=test_set,
        sample_id=sample_id,
        type=str(first["question_type"] or ""),
        question=first["question"],
        options=list(zip(LETTERS, first["options"], strict=False)),
        gold=first["gold"],
        image=data_uri(image) if image else None,
        answers=[
            Answer(
                label=label,
                text=row["text"],
                letter=row["answer"] if isinstance(row["answer"], str) else None,
                correct=bool(row["correct"]),
                lenient=bool(row["correct_lenient"]),
                tokens=int(row["tokens"]),
                truncated=bool(row["truncated"]),
            )
            for label, row in rows.items()
        ],
    )


def _completion_group(run: Run, step: int, rows: list[dict]) -> CompletionGroup:
    first = rows[0]
    image = run.image(first["sample_id"])
    largest = max(1e-9, *(abs(row["advantage"]) for row in rows))
    added = [
        {"right": row["answer"] == row["gold"], "width": 50 * abs(row["advantage"]) / largest} | row
        for row in rows
    ]
    return CompletionGroup(
        step=step,
        sample_id=first["sample_id"],
        question=first["question"],
        options=list(zip(LETTERS, first["options"], strict=False)),
        gold=first["gold"],
        image=data_uri(image) if image else None,
        terms=list(first["rewards"]),
        completions=sorted(added, key=lambda row: row["completion"]),
    )
