"""The settings of a day, and the result of one check."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments/common")]

Item = TypeVar("Item")
Step = Callable[[], None]
Verdict = Literal["passed", "failed", "skipped"]


class UnavailableError(Exception):
    """The machine lacks a part that the check needs; the message names it."""


def step_itself(step: Step) -> Step:
    """A stand-in for a CUDA graph: the step itself."""
    return step


@dataclass(frozen=True)
class Day:
    """The settings of a day.

    Attributes:
        folder: results and logs.
        scratch: weights, checkpoints and run folders, deleted at the end.
        weights: checkpoint of Qwen2-VL-2B; ``None`` makes one of the genuine size with random weights.
        data: local copy of the paper's questions; ``None`` takes the hub's cache.
        rehearsal: the embedded model on the CPU.
        capture: captures a decoding step; ``None`` makes CUDA graphs.
    """

    folder: Path
    scratch: Path
    weights: Path | None = None
    data: Path | None = None
    rehearsal: bool = False
    capture: Callable[[Step], Step] | None = None

    @property
    def checkpoint(self) -> Path:
        return self.weights or self.scratch / "random"

    def pick(self, genuine: Item, tiny: Item) -> Item:
        """The value for a GPU, or the one for the rehearsal."""
        return tiny if self.rehearsal else genuine

    @property
    def model(self) -> list[str]:
        """Overrides that choose the model, with images of full size: phantoms are small."""
        if self.rehearsal:
            return ["model=tiny"]
        pixels = "model.recipe.min_pixels=${model.recipe.max_pixels}"
        return [f"model.path={self.checkpoint}", "model.revision=null", pixels]


@dataclass(frozen=True)
class Result:
    """The result of one check.

    Attributes:
        bounds: each condition in words, and whether it holds.
        figures: numbers and words by name; a list of equal dictionaries is a table.
        reason: why the check was skipped or did not end.
    """

    verdict: Verdict
    bounds: Mapping[str, bool] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def result(figures: Mapping[str, Any], bounds: Mapping[str, bool]) -> Result:
    """A check passes if all its bounds hold."""
    return Result("passed" if all(bounds.values()) else "failed", bounds, figures)


def quantiles(values: Any) -> dict[str, float]:
    """Median, 99th percentile and maximum of a tensor's absolute values."""
    if not len(values):
        return dict.fromkeys(("p50", "p99", "max"), math.nan)
    values = values.abs().float().flatten()[:10_000_000]
    found = {"p50": values.quantile(0.5), "p99": values.quantile(0.99), "max": values.max()}
    return {name: float(f"{float(value):.3g}") for name, value in found.items()}


def gb(size: float) -> float:
    """Bytes in GB (1e9), rounded."""
    return round(size / 1e9, 3)
