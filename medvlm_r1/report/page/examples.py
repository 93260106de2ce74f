"""Test questions and completion groups that the page prints, chosen by rule, never by hand."""

import base64
import io
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from medvlm_r1.data.sample import LETTERS
from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.run_folder import Run

LARGEST = 448  # pixels of an embedded image's longer side: sharp at its size on the page, small in the file


@dataclass(frozen=True)
class Prompt:
    """A question as the page prints it."""

    sample_id: str
    question: str
    options: list[tuple[str, str]]  # letter and text
    gold: str
    image: str | None  # data URI, if a run saved the image


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
class Question(Prompt):
    """One test question with the answer of every run group."""

    test_set: str
    type: str
    answers: list[Answer]


@dataclass(frozen=True)
class Pattern:
    """How often one pattern of right and wrong, group by group, occurs over all test questions."""

    right: tuple[bool, ...]
    count: int
    share: float


@dataclass(frozen=True)
class CompletionGroup(Prompt):
    """All completions of one prompt at one step."""

    step: int
    terms: list[str]  # names of the reward terms
    completions: list[dict]  # rows of ``rollouts/``, with ``right`` and the bar's ``width`` in percent added

    @property
    def right(self) -> int:
        return sum(row["right"] for row in self.completions)

    @property
    def mean(self) -> float:
        return statistics.fmean(row["total"] for row in self.completions)

    @property
    def reward_std(self) -> float:
        return statistics.pstdev(row["total"] for row in self.completions)


def choose_questions(c: Comparison, per_set: int = 2) -> tuple[list[Question], list[Pattern]]:
    """Questions that show how the run groups differ, answered by each group's first seed.

    Rule: for each test set take questions one by one. Questions with a saved image come first, then those
    whose pattern of right and wrong is rarest among the chosen ones, then those on which the groups differ,
    then the lowest sample id. Also counts each pattern over all test questions.
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
        images = {sample_id: saved_image(c.runs, sample_id) for sample_id in patterns}
        remaining = set(patterns)
        for _ in range(min(per_set, len(patterns))):
            best = min(
                remaining,
                key=lambda k: (images[k] is None, shown[patterns[k]], len(set(patterns[k])) == 1, k),
            )
            remaining.remove(best)
            shown[patterns[best]] += 1
            rows = {label: tables[test_set].loc[best] for label, tables in answers.items()}
            chosen.append(_question(test_set, best, rows, images[best]))
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
        groups = [_completion_group(run, step, rows) for rows in run.completion_groups(step)]
        chosen += sorted(groups, key=lambda group: group.reward_std == 0)[:per_step]
    return chosen


def data_uri(path: Path) -> str:
    """An image file as a data URI, resized to at most ``LARGEST`` pixels; a PNG that fits is unchanged."""
    with Image.open(path) as image:
        if max(image.size) <= LARGEST and image.format == "PNG":
            png = path.read_bytes()
        else:
            small, out = image.convert("RGB"), io.BytesIO()
            small.thumbnail((LARGEST, LARGEST))
            small.save(out, format="PNG", optimize=True)
            png = out.getvalue()
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def saved_image(runs: Iterable[Run], sample_id: str) -> Path | None:
    """The image of a question from the first run that saved it."""
    return next((path for run in runs if (path := run.image(sample_id))), None)


def _prompt(sample_id: str, row: dict | pd.Series, image: Path | None) -> tuple:
    options = list(zip(LETTERS, row["options"], strict=False))
    return sample_id, row["question"], options, row["gold"], data_uri(image) if image else None


def _question(test_set: str, sample_id: str, rows: dict[str, pd.Series], image: Path | None) -> Question:
    first = next(iter(rows.values()))
    return Question(
        *_prompt(sample_id, first, image),
        test_set=test_set,
        type=str(first["question_type"] or ""),
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
    first, sample_id = rows[0], rows[0]["sample_id"]
    largest = max(1e-9, *(abs(row["advantage"]) for row in rows))
    added = [
        {"right": row["answer"] == row["gold"], "width": 50 * abs(row["advantage"]) / largest} | row
        for row in rows
    ]
    return CompletionGroup(
        *_prompt(sample_id, first, run.image(sample_id)),
        step=step,
        terms=list(first["rewards"]),
        completions=sorted(added, key=lambda row: row["completion"]),
    )
