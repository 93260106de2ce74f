"""What the two sides have in common: a loop that takes turns, an instrument, and what a step computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from memory import Watch, peak_bytes
from phases import Counts, Phases
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
    computed: Computed

    def start(self, threads: int) -> None:
        """Build what must wait for the instrument, and go up to the first step."""
        self.turns = Turns(self.loop, threads)

    def loop(self, pause: Any) -> None:
        raise NotImplementedError

    def others(self) -> list[Tensor]:
        """Tensors held from step to step besides the trained model's: reference, optimiser state."""
        raise NotImplementedError

    def timed_step(self) -> dict[str, float]:
        """Seconds of each phase and of the whole ``step``."""
        self.turns.step(self.phases.step())
        return spent(self.phases)

    def watched_step(self) -> dict[str, Any]:
        """Arithmetic, memory and counts of one step; its time would mean nothing."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        held = [*self.model.parameters(), *self.model.buffers(), *self.others()]
        counts = Counts(self.phases, self.bare, self.image_processor)
        watch = Watch(held)
        plain, self.phases.read = self.phases.read, lambda: watch.flops
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

        @contextmanager
        def watched() -> Iterator[None]:
            with watch, self.phases.step():
                yield

        self.turns.step(watched())
        self.phases.read = plain
        return {
            "flops": spent(self.phases),
            "memory": peak_bytes(watch, sum(p.numel() * p.element_size() for p in trained)),
            "counters": {**counts.summary(), "host_reads": watch.host_reads},
        }


def spent(phases: Phases) -> dict[str, float]:
    return {**phases.spent, "step": sum(phases.spent.values())}
