"""Data of the trace browser: every test answer and every completion group, packed into the page.

A page opened from disk cannot load a second file, so the data is inside it: columns of numbers that point
into one pool of texts, as JSON, gzipped, base64. ``traces/read.js`` unpacks it.

Two limits keep the page small enough to open; the page names what they leave out:

1. ``LARGEST_FILES``: above it the page takes every n-th test question, the same ones of every run, and
   every n-th training step of each run, the first and the last included.
2. ``LARGEST_IMAGES``: images of test questions come first, then those of training questions.
"""

import base64
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.figures import colour_numbers
from medvlm_r1.report.page.examples import data_uri, saved_image
from medvlm_r1.report.run_folder import Run
from medvlm_r1.report.tables.table import set_name

LARGEST_FILES = 32_000_000  # bytes of all predictions.jsonl, and again of all rollouts/
LARGEST_IMAGES = 16_000_000  # characters of all images as data URIs
NOTHING = -1  # "no text" in a column of text numbers

KEY = ["test_set", "control", "sample_id"]


@dataclass(frozen=True)
class Traces:
    """The data of the trace browser."""

    packed: str  # JSON in columns, gzipped, base64
    images: list[str]  # data URIs that the columns refer to by number
    answers: int  # number of test questions, counted once per control
    groups: int  # number of completion groups
    left_out: list[str]  # sentences that name data which the page does not hold


class Pool:
    """Distinct values, numbered in order of first use."""

    def __init__(self) -> None:
        self._numbers: dict = {}

    def __call__(self, value: str | tuple | float | None) -> int:
        """The number of a value; ``NOTHING`` for ``None`` and NaN."""
        if value is None or value != value:
            return NOTHING
        return self._numbers.setdefault(value, len(self._numbers))

    def column(self, values: Iterable) -> list[int]:
        return [self(value) for value in values]

    def __contains__(self, value: str) -> bool:
        return value in self._numbers

    @property
    def values(self) -> list:
        return list(self._numbers)


@dataclass
class Images:
    """Saved images as data URIs, each once, up to ``LARGEST_IMAGES`` characters."""

    uris: Pool = field(default_factory=Pool)
    size: int = 0
    left_out: set[str] = field(default_factory=set)
    _numbers: dict[Path, int] = field(default_factory=dict)

    def __call__(self, path: Path | None) -> int:
        """The number of an image; ``NOTHING`` if there is none, or no room for it."""
        if path is None:
            return NOTHING
        if path not in self._numbers:
            self._numbers[path] = self._add(data_uri(path))
        return self._numbers[path]

    def _add(self, uri: str) -> int:
        if uri not in self.uris:
            if self.size + len(uri) > LARGEST_IMAGES:
                self.left_out.add(uri)
                return NOTHING
            self.size += len(uri)
        return self.uris(uri)


def pack_traces(c: Comparison) -> Traces:
    """Pack the traces of every run of a comparison; the same runs give the same bytes."""
    texts, images, left_out = Pool(), Images(), []
    colours = colour_numbers(c.groups)
    labels = [group.label for group in c.groups for _ in group.runs]
    tests = _test_columns(c.runs, texts, images, left_out)
    groups = _group_columns(c.runs, texts, images, left_out)
    modalities = pd.concat([run.all_predictions["modality"] for run in c.runs]).dropna().unique()
    modalities = sorted({*modalities, *(name for run in c.runs for name in run.trained_on)})
    if images.left_out:
        left_out.append(
            f"{len(images.left_out)} saved images are left out: the page holds "
            f"{LARGEST_IMAGES / 1e6:.0f} MB of images, those of test questions first."
        )
    columns = {
        "runs": [
            {"label": name, "name": run.name, "colour": colours[label]}
            for label, run, name in zip(labels, c.runs, _names(labels, c.runs), strict=True)
        ],
        "tests": tests,
        "groups": groups,
        "texts": texts.values,
        "names": {name: set_name(name) for name in (*c.test_sets, *modalities)},
    }
    plain = json.dumps(columns, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = gzip.compress(plain.encode(), compresslevel=6, mtime=0)
    return Traces(
        packed=base64.b64encode(packed).decode(),
        images=images.uris.values,
        answers=len(tests["id"]),
        groups=len(groups["id"]),
        left_out=left_out,
    )


def answer_set_name(run: Run, step: int | None = None) -> str:
    """Name of a run's answers in the browser's address: with the step if the run was evaluated at several.

    The default is the last step, which the tables are about.
    """
    steps = run.all_predictions["step"]
    if steps.nunique() == 1:
        return run.name
    return f"{run.name} at step {steps.max() if step is None else step}"


def _names(labels: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Names of the runs in the browser: the group's label, with the seed if the group has several."""
    named = zip(labels, runs, strict=True)
    return [f"{label}, seed {run.seed}" if labels.count(label) > 1 else label for label, run in named]


def _test_columns(runs: Sequence[Run], texts: Pool, images: Images, left_out: list[str]) -> dict[str, list]:
    """One row per question and control; ``answers`` holds a set of columns per run and evaluated step."""
    tables = [
        (k, step, part.set_index(KEY))
        for k, run in enumerate(runs)
        for step, part in run.all_predictions.groupby("step")
    ]
    questions = pd.concat([table for _, _, table in tables])
    questions = questions[~questions.index.duplicated()]
    size = sum((run.folder / "predictions.jsonl").stat().st_size for run in runs)
    if (every := math.ceil(size / LARGEST_FILES)) > 1:
        ids = questions.index.get_level_values("sample_id")
        included = set(ids.unique()[::every])
        left_out.append(
            f"Of {ids.nunique()} test questions {len(included)} are here, evenly spaced, the same in every "
            f"run: the predictions take {size / 1e6:.0f} MB, and the page holds {LARGEST_FILES / 1e6:.0f}."
        )
        questions = questions[[sample_id in included for sample_id in ids]]
    shown = questions.index.get_level_values("sample_id")
    if "picture_of" in questions:  # a control may show the image of another question
        shown = questions["picture_of"].where(questions["picture_of"].notna(), shown.to_numpy())
    keys = zip(("set", "control", "id"), KEY, strict=True)
    return {
        **{name: texts.column(questions.index.get_level_values(level)) for name, level in keys},
        "modality": texts.column(questions["modality"]),
        "type": texts.column(questions["question_type"]),
        "question": texts.column(questions["question"]),
        "options": [texts.column(options) for options in questions["options"]],
        "gold": texts.column(questions["gold"]),
        "picture": [images(saved_image(runs, sample_id)) for sample_id in shown],
        "seen": texts.column(shown),
        "answers": [
            {"run": k, "step": int(step), "name": answer_set_name(runs[k], step)}
            | _answer_columns(table.reindex(questions.index), questions, texts)
            for k, step, table in tables
        ],
    }


def _answer_columns(answers: pd.DataFrame, questions: pd.DataFrame, texts: Pool) -> dict[str, list]:
    """One run's answers in the order of the questions; a question without an answer has ``NOTHING``."""
    answered = answers["text"].notna()
    options = [  # 0, or the run's own order of the options, which a control may change
        texts.column(own) if here and list(own) != list(first) else 0
        for here, own, first in zip(answered, answers["options"], questions["options"], strict=True)
    ]

    def column(name: str, cast: type, missing: int = 0) -> list:
        return [cast(v) if here else missing for here, v in zip(answered, answers[name], strict=True)]

    return {
        "text": texts.column(answers["text"]),
        "answer": texts.column(answers["answer"]),
        "gold": texts.column(answers["gold"]),
        "options": options,
        # between 0 and 1 if options tie in the text prior
        "right": list(map(_short, column("correct", float, NOTHING))),
        "lenient": column("correct_lenient", int),
        "tokens": column("tokens", int),
        "truncated": column("truncated", int),
    }


def _group_columns(runs: Sequence[Run], texts: Pool, images: Images, left_out: list[str]) -> dict[str, list]:
    """One row per prompt and step; ``completions`` holds the completions of all groups in a row."""
    size = sum(path.stat().st_size for run in runs for path in run.folder.glob("rollouts/step-*.jsonl"))
    every = max(1, math.ceil(size / LARGEST_FILES))
    if every > 1:
        left_out.append(
            f"One training step in {every} is here, with the first and the last: rollouts/ takes "
            f"{size / 1e6:.0f} MB, and the page holds {LARGEST_FILES / 1e6:.0f}."
        )
    names = "run step id modality type question options gold picture first count"
    columns: dict[str, list] = {name: [] for name in names.split()}
    completions: list[dict] = []
    for k, run in enumerate(runs):
        steps = run.traced_steps
        for step in dict.fromkeys(steps[::every] + steps[-1:]):
            for rows in run.completion_groups(step):
                first = rows[0]
                group = (
                    *(k, step, texts(first["sample_id"])),
                    *(texts(first.get("modality", "")), texts(first.get("question_type", ""))),
                    *(texts(first["question"]), texts.column(first["options"]), texts(first["gold"])),
                    *(images(run.image(first["sample_id"])), len(completions), len(rows)),
                )
                for column, value in zip(columns.values(), group, strict=True):
                    column.append(value)
                completions += sorted(rows, key=lambda row: row["completion"])
    terms = list(dict.fromkeys(term for row in completions for term in row["rewards"]))
    return columns | {
        "completions": {
            "number": [row["completion"] for row in completions],
            "text": texts.column(row["text"] for row in completions),
            "answer": texts.column(row["answer"] for row in completions),
            "right": [int(row.get("right", row["answer"] == row["gold"])) for row in completions],
            "total": [_short(row["total"]) for row in completions],
            "advantage": [_short(row["advantage"]) for row in completions],
            "tokens": [row["tokens"] for row in completions],
            "truncated": [int(row["truncated"]) for row in completions],
            "rewards": {term: [_short(row["rewards"].get(term)) for row in completions] for term in terms},
        }
    }


def _short(value: float | None) -> float | int | None:
    """Four decimals, none for an integer; ``None`` for NaN and infinity, which JSON does not have."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, 4)
