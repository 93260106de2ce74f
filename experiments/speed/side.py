"""Interface of both trainers: steps in turns, their measurement and their results."""

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
    """Inputs of both sides.

    Attributes:
        model: the weights, without adapters.
        reference: frozen weights of the KL term; ``None`` with adapters, whose base is the reference.
        questions: in the order of training.
        adapter: the adapters' weights by name; the first side fills it, the others copy from it.
        optimizer: of all weights, shared to allocate its moments once; adapters have their own.
        steps: number of steps.
    """

    model: nn.Module
    reference: nn.Module | None
    questions: list[Any]
    adapter: dict[str, Tensor]
    optimizer: torch.optim.Optimizer | None
    steps: int

    def same_adapter(self, model: nn.Module) -> None:
        """Copy the adapter weights of the first side into ``model``."""
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
    """Results of one step, prompt-major; the sides must agree on all of them.

    Attributes:
        prompt: token ids of the first prompt.
        tokens, mask: completions.
        logprobs, ref_logprobs: log-probabilities of policy and reference per completion token.
        loss: loss of the step.
        grad_norm: gradient norm before clipping.
        sampled: the sampler's log-probabilities, if it records them.
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
    """A trainer that takes one optimiser step at a time.

    Subclasses run the library's own loop in :meth:`loop`, and ``self.phases`` times its parts.
    """

    name: str
    model: nn.Module  # with adapters
    bare: nn.Module  # without adapters
    image_processor: Any
    lengths: Tensor  # tokens of each row's completion
    computed: Computed

    def start(self, threads: int) -> None:
        """Start the training loop and stop before its first step."""
        self.turns = Turns(self.loop, threads)

    def loop(self, pause: Any) -> None:
        raise NotImplementedError

    def reference(self) -> nn.Module | None:
        """Return the frozen model of the KL term, if it is a model of its own."""
        raise NotImplementedError

    def replay(self, other: "Side | None") -> None:
        """Train on the completions of ``other``'s last step; ``None`` samples again."""
        raise NotImplementedError

    def timed_step(self) -> dict[str, float]:
        """Take a step; return the seconds of each phase and of the ``step``."""
        self.turns.step(self.phases.step())
        return spent(self.phases)

    def watched_step(self) -> dict[str, Any]:
        """Take two steps; return operations, memory and counts of the second.

        The first allocates what lasts from step to step: the optimiser's moments, caches.
        """
        models = [model for model in (self.model, self.reference()) if model is not None]
        weights = [t for model in models for t in (*model.parameters(), *model.buffers())]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        watch = Watch(weights, self.phases)
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
