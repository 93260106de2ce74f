"""Peak memory, operations and device synchronisations of a step."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from phases import Phases
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from medvlm_r1.plan.meta import Ledger

aten = torch.ops.aten
# torch has no FLOP formula for the CPU's attention kernel, which takes the arguments of the GPU's.
for suffix in ("", "_backward"):
    flop_registry.setdefault(
        getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{suffix}"),
        flop_registry[getattr(aten, f"_scaled_dot_product_flash_attention{suffix}")],
    )


class Watch(Ledger):
    """Counts operations, live bytes and device synchronisations.

    Args:
        weights: weights and buffers, allocated before.
        phases: the clock that knows the current phase.

    Attributes:
        device_syncs: tensor values that the CPU waited for, by phase.
    """

    def __init__(self, weights: Iterable[Tensor], phases: Phases) -> None:
        weights = list(weights)
        super().__init__(excluded=weights)
        self.phases, self.device_syncs = phases, Counter[str]()
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in weights}
        self._before = sum(storages.values())
        self._on_gpu = any(t.is_cuda for t in weights)

    def begin(self) -> None:
        """Reset the counts; bytes alive now last from step to step, like the optimiser's moments."""
        self.flops = 0
        self.device_syncs.clear()
        self.peak, self._lasting = self.live, self.live
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self, gradients: int) -> dict[str, int]:
        """Peak since :meth:`begin`: in total, and above weights, gradients and moments.

        On a GPU this is the allocator's peak.

        Args:
            gradients: bytes of all gradients.
        """
        total = torch.cuda.max_memory_allocated() if self._on_gpu else self._before + self.peak
        resident = self._before + self._lasting + gradients
        return {"total": total, "resident": resident, "above_resident": total - resident}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is aten._local_scalar_dense.default:
            self.device_syncs[self.phases.current] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)
