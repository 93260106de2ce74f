"""Measure seconds or operations of a step by phase, and count images and tokens, the same on all sides."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timing import clock
from torch import nn

# encode: chat template, tokenizer, image processing; reference: log-probabilities without gradient;
# train: forward, loss and backward; update: clipping and optimiser; other: the rest of the step
PHASES = ("encode", "sample", "reference", "train", "update", "other")


class Phases:
    """Adds the increments of a counter to the innermost current phase.

    Args:
        read: a clock, or a counter of floating-point operations.

    Attributes:
        spent: total of each phase in the current or last step.
    """

    def __init__(self, read: Callable[[], float] = clock) -> None:
        self.read = read
        self.spent: Counter[str] = Counter()
        self._stack = ["other"]
        self._last = 0.0

    @property
    def current(self) -> str:
        return self._stack[-1]

    @contextmanager
    def step(self) -> Iterator[None]:
        self.spent = Counter()
        self._last = self.read()
        yield
        self._credit()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self._credit()
        self._stack.append(name)
        try:
            yield
        finally:
            self._credit()
            self._stack.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Make every call of ``owner.method`` a phase ``name``."""
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
    """Return the numbers by phase and their sum as ``step``."""
    return {**counts, "step": counts.total()}


class Counts:
    """Counts inputs of a model's modules by phase, with the same forward hooks on every side.

    Recomputation in the backward pass counts too.

    Args:
        phases: the clock that knows the current phase.
        rows: completions per step.
        image_processor: the side's image processor.

    Attributes:
        images: images through the vision tower.
        tokens: positions through the language model.
        row_steps: positions in decoding steps, which are passes of at most ``rows`` positions.
        preprocessed: images through the image processor.
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
        """Hook a Qwen2-VL without adapters; PEFT replaces the modules below it in place."""
        inner = model.model
        inner.visual.register_forward_pre_hook(self._see, with_kwargs=True)
        # Inside a layer: some engines have their own loop over the layers.
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
