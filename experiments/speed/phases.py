"""Where a step's time or arithmetic goes, and what is counted on the way: one instrument for all sides."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# encode: chat template, tokenizer, image processing; reference: log-probabilities without gradient;
# train: forward, loss and backward; update: clipping and optimiser; other: the rest of the step
PHASES = ("encode", "sample", "reference", "train", "update", "other")


def clock() -> float:
    """Seconds, once the device has caught up."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Phases:
    """Credits what ``read`` advances by to the innermost phase under way.

    Args:
        read: a clock, or a count of floating-point operations.

    Attributes:
        spent: of each phase in the present or last step.
    """

    def __init__(self, read: Callable[[], float] = clock) -> None:
        self.read = read
        self.spent: Counter[str] = Counter()
        self._under_way = ["other"]
        self._last = 0.0

    @property
    def current(self) -> str:
        return self._under_way[-1]

    @contextmanager
    def step(self) -> Iterator[None]:
        self.spent = Counter()
        self._last = self.read()
        yield
        self._credit()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self._credit()
        self._under_way.append(name)
        try:
            yield
        finally:
            self._credit()
            self._under_way.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count every call of ``owner.method`` as phase ``name``."""
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return plain(*args, **kwargs)

        setattr(owner, method, timed)

    def _credit(self) -> None:
        now = self.read()
        self.spent[self.current] += now - self._last
        self._last = now


def by_phase(counts: Counter[str]) -> dict[str, float]:
    """The phases' numbers and, as ``step``, their sum."""
    return {**counts, "step": counts.total()}


class Counts:
    """What passes through a model's modules, by phase; the same hooks on the modules of every side.

    Recomputation in a backward pass is counted too: it is work.

    Args:
        phases: what a count is credited to.
        rows: completions of a step.
        image_processor: of the side.

    Attributes:
        images: pictures through the vision tower.
        tokens: positions through the language model.
        row_steps: of decoding, that is of passes with no more positions than there are rows.
        preprocessed: pictures through the image processor.
    """

    def __init__(self, phases: Phases, rows: int, image_processor: Any) -> None:
        self.phases, self.rows, self.preprocessed = phases, rows, 0
        self.images, self.tokens, self.row_steps = Counter(), Counter(), Counter()
        plain = image_processor.preprocess

        @functools.wraps(plain)
        def preprocess(images: Any, *args: Any, **kwargs: Any) -> Any:
            self.preprocessed += len(images) if isinstance(images, list) else 1
            return plain(images, *args, **kwargs)

        image_processor.preprocess = preprocess

    def hook(self, model: nn.Module) -> None:
        """Count what passes through a bare Qwen2-VL; adapters exchange the modules below it in place."""
        inner = model.model
        inner.visual.register_forward_pre_hook(self._see, with_kwargs=True)
        # Inside a layer, so that an engine which has a loop over the layers of its own is counted as well.
        inner.language_model.layers[0].mlp.register_forward_pre_hook(self._read)

    def clear(self) -> None:
        self.preprocessed = 0
        for counter in (self.images, self.tokens, self.row_steps):
            counter.clear()

    def summary(self) -> dict[str, Any]:
        named = {"images": self.images, "tokens": self.tokens, "row_steps": self.row_steps}
        return {name: by_phase(counts) for name, counts in named.items()} | {
            "preprocessed": self.preprocessed
        }

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.images[self.phases.current] += len(grid)

    def _read(self, module: nn.Module, args: tuple) -> None:
        (hidden,) = args
        positions = hidden.numel() // hidden.shape[-1]
        self.tokens[self.phases.current] += positions
        if self.phases.current == "sample" and positions <= self.rows:
            self.row_steps[self.phases.current] += positions
