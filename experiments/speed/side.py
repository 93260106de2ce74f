"""What the two sides have in common: a loop that takes turns, an instrument, and what a step computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from memory import Watch
from phases import Counts, Phases, by_phase
from torch import Tensor, nn
from turns import Turns


@dataclass
class Given:
    """What both sides start from.

    Attributes:
        model: the weights, bare.
        reference: frozen weights of the KL term; ``None`` with adapters, which are switched off for it.
        questions: in the order of training.
        adapter: the adapters' weights by name, once a side has made them; the others take them over.
        optimizer: of all weights, shared so that its moments are held once; adapters have their own.
        steps: how many steps will be asked for.
    """

    model: nn.Module
    reference: nn.Module | None
    questions: list[Any]
    adapter: dict[str, Tensor]
    optimizer: torch.optim.Optimizer | None
    steps: int

    def same_adapter(self, model: nn.Module) -> None:
        """Give ``model``'s adapters the weights of the side that was built first."""
        mine = {name: p for name, p in model.named_parameters() if "lora_" in name}
        if not self.adapter:
            self.adapter.update((name, p.detach().clone()) for name, p in mine.items())
        if mine.keys() != self.adapter.keys():
            raise RuntimeError(f"the sides have different adapters: {mine.keys() ^ self.adapter.keys()}")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(self.adapter[name])


@dataclass
class Computed:
    """What one step computed, prompt-major; the sides must agree on all of it.

    Attributes:
        prompt: token ids of the first prompt.
        tokens, mask: completions.
        logprobs, ref_logprobs: per completion token.
        loss: of the whole step.
        grad_norm: before clipping.
        sampled: log-probabilities that the sampler recorded, where it does.
    """

    prompt: list[int]
    tokens: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    logprobs: Float[Tensor, "rows tokens"]
    ref_logprobs: Float[Tensor, "rows tokens"] | None
    loss: float
    grad_norm: float
    sampled: Float[Tensor, "rows tokens"] | None = None


class Side:
    """A trainer that is asked for one optimiser step at a time.

    Subclasses run the library's own loop in :meth:`loop`, with ``self.phases`` wrapped around its parts.
    """

    name: str
    model: nn.Module  # as it is trained, adapters included
    bare: nn.Module  # the Qwen2-VL itself
    image_processor: Any
    lengths: Tensor  # of each row's completion
    computed: Computed

    def start(self, threads: int) -> None:
        """Build what must wait for the instrument, and go up to the first step."""
        self.turns = Turns(self.loop, threads)

    def loop(self, pause: Any) -> None:
        raise NotImplementedError

    def reference(self) -> nn.Module | None:
        """The frozen model of the KL term, where there is one besides the trained one."""
        raise NotImplementedError

    def replay(self, other: "Side | None") -> None:
        """Train on the completions of ``other``'s last step from now on; ``None`` samples again."""
        raise NotImplementedError

    def timed_step(self) -> dict[str, float]:
        """Seconds of each phase and of the whole ``step``."""
        self.turns.step(self.phases.step())
        return spent(self.phases)

    def watched_step(self) -> dict[str, Any]:
        """Arithmetic, memory and counts of the second of two steps; its time would mean nothing.

        The first makes what is held from step to step: the optimiser's moments, caches.
        """
        models = [model for model in (self.model, self.reference()) if model is not None]
        held = [t for model in models for t in (*model.parameters(), *model.buffers())]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        watch = Watch(held, self.phases)
        counts = Counts(self.phases, len(self.lengths), self.image_processor)
        for bare in (self.bare, self.reference()):
            if bare is not None:
                counts.hook(bare)
        plain, self.phases.read = self.phases.read, lambda: watch.flops

        @contextmanager
        def watched() -> Iterator[None]:
            with watch, self.phases.step():
                yield

        self.turns.step(watched())
        watch.begin()
        counts.clear()
        self.turns.step(watched())
        self.phases.read = plain
        return {
            "flops": spent(self.phases),
            "memory": watch.peak_bytes(gradients),
            "counters": {**counts.summary(), "device_syncs": by_phase(watch.device_syncs)},
        }


def spent(phases: Phases) -> dict[str, float]:
    return by_phase(phases.spent)
