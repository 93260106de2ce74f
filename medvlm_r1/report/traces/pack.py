"""What the trace browser shows: every test answer and every group of completions, packed for the page.

A page opened from disk may load no second file, so all of it lies inside the page: columns of numbers,
texts once each in a pool that the columns point into, gzipped. ``traces_read.js`` unpacks it.

Two bounds keep the page openable; what they leave out is said on the page:

1. ``LARGEST_FILES``: beyond it test questions are thinned evenly, the same ones in every run, and
   training steps are thinned evenly in each run, first and last kept.
2. ``LARGEST_PICTURES``: pictures of test questions come first, then those of training.
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
from medvlm_r1.report.figures import series
from medvlm_r1.report.page.examples import data_uri
from medvlm_r1.report.run_folder import Run
from medvlm_r1.report.tables.table import set_name

LARGEST_FILES = 32_000_000  # bytes of all predictions.jsonl, and again of all rollouts/
LARGEST_PICTURES = 16_000_000  # characters of all pictures as they stand in the page
NOTHING = -1  # in a column that points into the pool

KEY = ["test_set", "control", "sample_id"]


@dataclass(frozen=True)
class Traces:
    """All that the browser needs.

    Attributes:
        packed: JSON in columns, gzipped, base64.
        pictures: data URIs that the columns point to.
        answers: test questions that are shown, once per control.
        groups: groups of completions that are shown.
        left_out: sentences about what is not.
    """

    packed: str
    pictures: list[str]
    answers: int
    groups: int
    left_out: list[str]


class Pool:
    """Different values in the order in which they came, found by their number."""

    def __init__(self) -> None:
        self._numbers: dict = {}

    def __call__(self, value: str | tuple | None) -> int:
        if value is None or value != value:  # NaN, where a table has no value
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
class Pictures:
    """Kept pictures as data URIs, each once, up to the bound."""

    uris: Pool = field(default_factory=Pool)
    size: int = 0
    refused: set[str] = field(default_factory=set)
    _seen: dict[Path, int] = field(default_factory=dict)

    def __call__(self, path: Path | None) -> int:
        if path is None:
            return NOTHING
        if path not in self._seen:
            self._seen[path] = self._add(data_uri(path))
        return self._seen[path]

    def _add(self, uri: str) -> int:
        if uri not in self.uris:
            if self.size + len(uri) > LARGEST_PICTURES:
                self.refused.add(uri)
                return NOTHING
            self.size += len(uri)
        return self.uris(uri)


def pack_traces(c: Comparison) -> Traces:
    """Pack the traces of every run of a comparison."""
    texts, pictures, left_out = Pool(), Pictures(), []
    runs = [(row.label, run) for row in c.groups for run in row.runs]
    colours = series(c.groups)
    tests = _tests(runs, texts, pictures, left_out)
    groups = _groups([run for _, run in runs], texts, pictures, left_out)
    if pictures.refused:
        left_out.append(
            f"{len(pictures.refused)} kept pictures are left out: the page holds "
            f"{LARGEST_PICTURES / 1e6:.0f} MB of them, those of test questions first."
        )
    columns = {
        "runs": [
            {"label": name, "name": run.name, "colour": colours[label]}
            for (label, run), name in zip(runs, _names(runs), strict=True)
        ],
        "tests": tests,
        "groups": groups,
        "texts": texts.values,
        "names": {name: set_name(name) for name in (*c.test_sets, *_modalities(runs))},
    }
    plain = json.dumps(columns, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = gzip.compress(plain.encode(), compresslevel=6, mtime=0)
    return Traces(
        packed=base64.b64encode(packed).decode(),
        pictures=pictures.uris.values,
        answers=len(tests["id"]),
        groups=len(groups["id"]),
        left_out=left_out,
    )


def answer_set_name(run: Run, step: int | None = None) -> str:
    """What the browser's address calls a run's answers: with their step if it was evaluated at several.

    Without ``step``, the answers that the tables are made of.
    """
    steps = run.all_predictions["step"]
    if steps.nunique() == 1:
        return run.name
    return f"{run.name} at step {steps.max() if step is None else step}"


def _modalities(runs: Sequence[tuple[str, Run]]) -> list[str]:
    named = [pd.concat([run.all_predictions["modality"] for _, run in runs]).dropna().unique()]
    return sorted({name for names in (*named, *(run.trained_on for _, run in runs)) for name in names})


def _names(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """What a run is called in the browser: its row, with the seed where the row has several."""
    labels = [label for label, _ in runs]
    return [f"{label}, seed {run.seed}" if labels.count(label) > 1 else label for label, run in runs]


def _tests(
    runs: Sequence[tuple[str, Run]], texts: Pool, pictures: Pictures, left_out: list[str]
) -> dict[str, list]:
    """One row per question and control; under ``replies`` one set of columns per run and evaluated step."""
    tables = [
        (k, step, part.set_index(KEY))
        for k, (_, run) in enumerate(runs)
        for step, part in run.all_predictions.groupby("step")
    ]
    asked = pd.concat([table for _, _, table in tables])
    asked = asked[~asked.index.duplicated()]
    size = sum((run.folder / "predictions.jsonl").stat().st_size for _, run in runs)
    if (every := math.ceil(size / LARGEST_FILES)) > 1:
        ids = asked.index.get_level_values("sample_id")
        kept = set(ids.unique()[::every])
        left_out.append(
            f"Of {ids.nunique()} test questions {len(kept)} are here, evenly spaced, the same in every run: "
            f"the predictions take {size / 1e6:.0f} MB, and the page holds {LARGEST_FILES / 1e6:.0f}."
        )
        asked = asked[[name in kept for name in ids]]
    folders = [run for _, run in runs]
    seen = asked.index.get_level_values("sample_id")
    if "picture_of" in asked:  # a control may show the picture of another question
        seen = asked["picture_of"].where(asked["picture_of"].notna(), seen.to_numpy())
    return {
        "set": texts.column(asked.index.get_level_values("test_set")),
        "control": texts.column(asked.index.get_level_values("control")),
        "id": texts.column(asked.index.get_level_values("sample_id")),
        "modality": texts.column(asked["modality"]),
        "type": texts.column(asked["question_type"]),
        "question": texts.column(asked["question"]),
        "options": [texts.column(options) for options in asked["options"]],
        "gold": texts.column(asked["gold"]),
        "picture": [pictures(_kept(folders, name)) for name in seen],
        "seen": texts.column(seen),
        "replies": [
            {"run": k, "step": int(step), "name": answer_set_name(runs[k][1], step)}
            | _replies(table.reindex(asked.index), asked, texts)
            for k, step, table in tables
        ],
    }


def _replies(said: pd.DataFrame, asked: pd.DataFrame, texts: Pool) -> dict[str, list]:
    """One run's answers in the order of the questions; a question that it was not asked has no text."""
    there = said["text"].notna()
    own = [  # a control may put the options in an order of the run's own
        texts.column(mine) if here and list(mine) != list(first) else 0
        for here, mine, first in zip(there, said["options"], asked["options"], strict=True)
    ]
    return {
        "text": texts.column(said["text"]),
        "answer": texts.column(said["answer"]),
        "gold": texts.column(said["gold"]),
        "options": own,
        # a share of 1 where the text prior cannot decide
        "right": [
            _short(float(r)) if here else NOTHING for here, r in zip(there, said["correct"], strict=True)
        ],
        "lenient": [int(r) if here else 0 for here, r in zip(there, said["correct_lenient"], strict=True)],
        "tokens": [int(n) if here else 0 for here, n in zip(there, said["tokens"], strict=True)],
        "truncated": [int(t) if here else 0 for here, t in zip(there, said["truncated"], strict=True)],
    }


def _groups(runs: Sequence[Run], texts: Pool, pictures: Pictures, left_out: list[str]) -> dict[str, list]:
    """One row per prompt and step, its completions side by side in ``completions``."""
    size = sum(path.stat().st_size for run in runs for path in run.folder.glob("rollouts/step-*.jsonl"))
    every = max(1, math.ceil(size / LARGEST_FILES))
    if every > 1:
        left_out.append(
            f"One training step in {every} is here, with the first and the last: rollouts/ takes "
            f"{size / 1e6:.0f} MB, and the page holds {LARGEST_FILES / 1e6:.0f}."
        )
    names = ("run", "step", "id", "modality", "type", "question", "gold", "picture", "first", "count")
    groups: dict[str, list] = {name: [] for name in names} | {"options": []}
    said: list[dict] = []
    for k, run in enumerate(runs):
        steps = run.traced_steps
        for step in dict.fromkeys(steps[::every] + steps[-1:]):
            by_prompt: dict[str, list[dict]] = {}
            for row in run.rollouts(step):
                by_prompt.setdefault(row["sample_id"], []).append(row)
            for name, rows in by_prompt.items():
                first = rows[0]
                values = (
                    k,
                    step,
                    texts(name),
                    texts(first.get("modality", "")),
                    texts(first.get("question_type", "")),
                    texts(first["question"]),
                    texts(first["gold"]),
                    pictures(run.image(name)),
                    len(said),
                    len(rows),
                )
                for column, value in zip(names, values, strict=True):
                    groups[column].append(value)
                groups["options"].append(texts.column(first["options"]))
                said += sorted(rows, key=lambda row: row["completion"])
    terms = list(dict.fromkeys(term for row in said for term in row["rewards"]))
    return groups | {
        "completions": {
            "number": [row["completion"] for row in said],
            "text": texts.column(row["text"] for row in said),
            "answer": texts.column(row["answer"] for row in said),
            "right": [int(row.get("right", row["answer"] == row["gold"])) for row in said],
            "total": [_short(row["total"]) for row in said],
            "advantage": [_short(row["advantage"]) for row in said],
            "tokens": [row["tokens"] for row in said],
            "truncated": [int(row["truncated"]) for row in said],
            "rewards": {term: [_short(row["rewards"].get(term)) for row in said] for term in terms},
        }
    }


def _kept(runs: Sequence[Run], sample_id: str) -> Path | None:
    return next((path for run in runs if (path := run.image(sample_id))), None)


def _short(value: float | None) -> float | int | None:
    """Four decimals, none of a whole number; what is not finite has no place in JSON."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, 4)
