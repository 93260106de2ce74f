"""Reads the folder of one run. Without ``metrics.json`` the run is unfinished.

Reading renames what earlier versions called otherwise (:mod:`medvlm_r1.runs.renames`).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.samples import passed
from medvlm_r1.report.methods import UNTRAINED, method_title
from medvlm_r1.runs.folder import image_path
from medvlm_r1.runs.renames import COMPLEMENTS, METRICS, renamed, renamed_config, renamed_overrides


class RunFolderError(ValueError):
    """A folder cannot be read as a run. The message names the folder, the fault and the remedy."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    folder: Path
    metrics: dict
    config: dict  # resolved, in plain types; empty without ``config.yaml``

    @property
    def name(self) -> str:
        return self.facts.get("name") or self.folder.name

    @property
    def facts(self) -> dict:
        """Facts about the run: versions, commit, seed, model, data."""
        return self.metrics["run"]

    @property
    def method(self) -> str:
        return self.facts["method"]

    @property
    def earlier(self) -> list[dict]:
        """Training of the starting weights: method, steps, questions and tokens of each phase."""
        return self.facts.get("earlier") or []

    @property
    def title(self) -> str:
        """Titles of the methods in the order of training: ``SFT then GRPO``."""
        return " then ".join(
            method_title(name) for name in (*(p["method"] for p in self.earlier), self.method)
        )

    def over_phases(self, fact: str) -> str:
        """Sum of a count of work over the phases of training, ``75 + 75``; ``?`` where it is unknown."""
        counts = [phase.get(fact) for phase in (*self.earlier, self.facts)]
        return " + ".join("?" if n is None else f"{n:,}" for n in counts)

    @property
    def experiment(self) -> str:
        return str(self.facts.get("experiment") or self.method)

    @property
    def seed(self) -> int:
        return int(self.facts["seed"])

    @property
    def test_sets(self) -> list[str]:
        return list(self.metrics["accuracy"])

    @cached_property
    def all_predictions(self) -> pd.DataFrame:
        """The rows of ``predictions.jsonl``, of every evaluated step."""
        path = self.folder / "predictions.jsonl"
        rows = pd.DataFrame(_json_lines(path))
        if rows.empty:
            raise RunFolderError(f"{path} is missing or empty: run the evaluation again")
        rows = rows[rows["test_set"].isin(self.test_sets)].copy()
        rows["correct"] = rows["correct"].astype(float)  # a probability in the rows of the text prior
        sampled = rows.get("samples", pd.Series(None, rows.index, dtype=object))
        rows["passed"] = [passed(s) if isinstance(s, list) else None for s in sampled]
        if rows.duplicated(["step", "test_set", "control", "sample_id"]).any():
            raise RunFolderError(f"{path} has a question twice for one step, test set and control")
        return rows.reset_index(drop=True)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per question, test set and control, of the last evaluated step of each test set."""
        rows = self.all_predictions
        rows = rows[rows["step"] == rows.groupby("test_set")["step"].transform("max")]
        plain = rows[rows["control"] == PLAIN]
        for name, entry in self.metrics["accuracy"].items():
            correct = plain.loc[plain["test_set"] == name, "correct"]
            if len(correct) != entry["n"] or abs(correct.mean() - entry["value"]) > 1e-6:
                raise RunFolderError(
                    f"{self.folder}: metrics.json has {entry['value']:.4f} of {entry['n']} right on {name}, "
                    f"predictions.jsonl {correct.mean():.4f} of {len(correct)}: one of them is stale"
                )
        return rows.reset_index(drop=True)

    def answers(self, test_set: str, control: str = PLAIN) -> pd.DataFrame:
        """Rows of one test set under one control, indexed and sorted by sample id."""
        return self._tables[test_set, control]

    def has_answers(self, test_set: str, control: str) -> bool:
        """Whether the run answered questions of the test set under the control."""
        return (test_set, control) in self._tables

    @cached_property
    def _tables(self) -> dict[tuple[str, str], pd.DataFrame]:
        parts = self.predictions.groupby(["test_set", "control"], sort=False)
        return {key: part.set_index("sample_id").sort_index() for key, part in parts}

    @property
    def controls(self) -> list[str]:
        """Controls of every test set, the plain one first."""
        names = self.predictions["control"].unique()
        complete = [c for c in names if all((t, c) in self._tables for t in self.test_sets)]
        return sorted(complete, key=lambda c: c != PLAIN)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """``metrics.csv``: sparse rows, one column per logged metric; empty if nothing was logged."""
        path = self.folder / "metrics.csv"
        if not (path.is_file() and path.stat().st_size):
            return pd.DataFrame({"step": []})
        table = pd.read_csv(path)
        for old, new in METRICS.items():
            if old in table:  # beside the new column if two versions wrote the file
                values = 1 - table.pop(old) if old in COMPLEMENTS else table.pop(old)
                table[new] = table.get(new, values).fillna(values)
        return table

    def curve(self, metric: str) -> pd.Series:
        """One metric by step; empty if it was not logged."""
        if metric not in self.curves:
            return pd.Series(dtype=float)
        return self.curves.dropna(subset=[metric]).groupby("step")[metric].last()

    @cached_property
    def traced_steps(self) -> list[int]:
        """Optimiser steps with completions in ``rollouts/``, ascending."""
        return sorted(int(p.stem.removeprefix("step-")) for p in self.folder.glob("rollouts/step-*.jsonl"))

    def rollouts(self, step: int) -> list[dict]:
        """The completions of one traced step, in file order."""
        return _json_lines(self.folder / "rollouts" / f"step-{step}.jsonl")

    def completion_groups(self, step: int) -> list[list[dict]]:
        """The completions of one traced step by prompt."""
        groups: dict[str, list[dict]] = {}
        for row in self.rollouts(step):
            groups.setdefault(row["sample_id"], []).append(row)
        return list(groups.values())

    @cached_property
    def alarms(self) -> list[dict]:
        return _json_lines(self.folder / "alarms.jsonl")

    @cached_property
    def timing(self) -> dict:
        path = self.folder / "timing.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @cached_property
    def command(self) -> str:
        """The command line that started the run."""
        return str(self.facts.get("command") or " ".join(["python run.py", *self._typed]))

    @cached_property
    def overrides(self) -> dict[str, str]:
        """Keys of the command line, without ``+`` and ``~``, with their values."""
        parts = (text.lstrip("+~").partition("=") for text in renamed_overrides(self._typed)[0])
        return {key: value for key, _, value in parts}

    @cached_property
    def choices(self) -> dict[str, str]:
        """The selected option of every config group."""
        path = self.folder / ".hydra" / "hydra.yaml"
        choices = OmegaConf.load(path).hydra.runtime.choices if path.is_file() else {}
        return {renamed(group): option for group, option in choices.items()}

    @cached_property
    def _typed(self) -> list[str]:
        path = self.folder / ".hydra" / "overrides.yaml"
        return [str(text) for text in OmegaConf.load(path)] if path.is_file() else []

    @cached_property
    def trained_on(self) -> list[str]:
        """Modalities of the training questions in lower case, if known; none without training.

        From ``run.trained_on`` in ``metrics.json``, else from keys of the ``data`` configuration.
        """
        if self.method in UNTRAINED:
            return []
        named = self.facts.get("trained_on")
        if named is None:
            data = flatten(self.config.get("data") or {})
            keys = ("train_modality", "train_modalities", "train.modality", "train.modalities", "modality")
            named = next((data[k] for k in keys if data.get(k)), [])
        return [str(m).lower() for m in (named if isinstance(named, list) else [named])]

    @cached_property
    def in_domain(self) -> list[str]:
        """Test sets of the training modalities."""
        rows = self.predictions
        modality = rows.groupby("test_set")["modality"].agg(lambda m: set(map(str.lower, m)))
        known = set(self.trained_on)
        return [t for t in self.test_sets if t.lower() in known or modality[t] <= known]

    def image(self, sample_id: str) -> Path | None:
        """The image of a question, if the run saved it."""
        path = image_path(self.folder / "images", sample_id)
        return path if path.is_file() else None


def read_run(folder: Path) -> Run:
    """Read one finished run.

    Raises:
        RunFolderError: ``metrics.json`` is missing (the run is unfinished) or lacks needed keys.
    """
    folder = Path(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise RunFolderError(f"{folder} has no metrics.json: the run is unfinished, or this is no run folder")
    try:
        metrics = json.loads(path.read_text())
        str(metrics["run"]["method"])
        int(metrics["run"]["seed"])
        dict(metrics["accuracy"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is no summary of a run ({type(error).__name__}: {error})") from error
    counters = (metrics.get("counters") or {}).items()
    metrics["counters"] = {METRICS.get(f"train/{k}", k).removeprefix("train/"): n for k, n in counters}
    config = folder / "config.yaml"
    resolved = OmegaConf.to_container(OmegaConf.load(config), resolve=False) if config.is_file() else {}
    return Run(folder, metrics, renamed_config(resolved))


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Read the finished runs in run folders or folders of run folders, and list the unfinished ones.

    Raises:
        RunFolderError: a folder does not exist or contains no run, or no run is finished.
    """
    runs, unfinished = {}, []
    for folder in map(Path, folders):
        if not folder.is_dir():
            near = get_close_matches(folder.name, [p.name for p in folder.parent.glob("*/")], n=3, cutoff=0)
            hint = f"; {folder.parent} has {', '.join(near)}" if near else ""
            raise RunFolderError(f"{folder} is not a folder{hint}")
        inside = [folder] if _is_run(folder) else sorted(filter(_is_run, folder.iterdir()))
        if not inside:
            raise RunFolderError(f"{folder} contains no run: give a run folder, or a folder of run folders")
        for path in inside:
            if (path / "metrics.json").is_file():
                runs[path.resolve()] = read_run(path)
            elif path not in unfinished:
                unfinished.append(path)
    if not runs:
        raise RunFolderError(f"no finished run in {', '.join(map(str, unfinished))}: metrics.json is missing")
    return list(runs.values()), unfinished


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict with dotted keys; lists are values."""
    flat = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ("metrics.json", "config.yaml", ".hydra"))


def _json_lines(path: Path) -> list[dict]:
    """Rows of a JSON-lines file; none if the file does not exist."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunFolderError(
                f"{path}, line {number} is not JSON ({error}): the run was interrupted while writing"
            ) from error
    return rows
