"""Seconds and peak memory of the parts of a training step."""

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Methods of the training step and the names of their parts.
PARTS = {
    "training_step": "step",
    "sample": "sample",
    "score_logprobs": "reference",
    "update_minibatch": "train",
    "apply_gradients": "update",
}


def clock() -> float:
    """Return seconds after synchronising the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """Return bytes: on a GPU the allocator's peak since the last call, on a CPU the process's peak."""
    if not torch.cuda.is_available():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


class StepTimer:
    """Measures seconds and peak memory of each part of a training step; a part contains those within it.

    Args:
        module: its methods of :data:`PARTS` become parts.

    Attributes:
        seconds: of each call, by part.
        peaks: largest number of bytes, by part.
    """

    def __init__(self, module: Any) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, float] = defaultdict(float)
        self._current: list[str] = []
        for method, name in PARTS.items():
            if hasattr(module, method):
                setattr(module, method, self._wrapped(getattr(module, method), name))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the block as the part ``name``."""
        self._note_peak()
        self._current.append(name)
        start = clock()
        yield
        self.seconds[name].append(round(clock() - start, 3))
        self._note_peak()
        self._current.pop()

    def _wrapped(self, method: Callable, name: str) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return method(*args, **kwargs)

        return timed

    def _note_peak(self) -> None:
        """Add the peak since the last call to every current part, and reset it."""
        peak = peak_memory()
        for name in self._current:
            self.peaks[name] = max(self.peaks[name], peak)
