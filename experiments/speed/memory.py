"""The most bytes alive at once, and the arithmetic, of a step."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from phases import Phases
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from medvlm_r1.plan.meta import Ledger

aten = torch.ops.aten
# torch's FLOP formulas leave out attention's kernel on a CPU, whose arguments are those of the others.
for suffix in ("", "_backward"):
    flop_registry.setdefault(
        getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{suffix}"),
        flop_registry[getattr(aten, f"_scaled_dot_product_flash_attention{suffix}")],
    )


class Watch(Ledger):
    """Counts arithmetic and live bytes, and how often the host asks for a tensor's value.

    Args:
        known: weights and buffers, which were there before.
        phases: what a count is credited to.

    Attributes:
        host_reads: values of tensors that the host waited for, by phase.
    """

    def __init__(self, known: Iterable[Tensor], phases: Phases) -> None:
        known = list(known)
        super().__init__(known=known)
        self.phases, self.host_reads = phases, Counter[str]()
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in known}
        self._before = sum(storages.values())
        self._on_gpu = any(t.is_cuda for t in known)

    def begin(self) -> None:
        """Count anew; what lives now is held from step to step, like the optimiser's moments."""
        self.flops = 0
        self.host_reads.clear()
        self.peak, self._lasting = self.live, self.live
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self, gradients: int) -> dict[str, int]:
        """The peak since :meth:`begin`: in total, and above what training holds anyway.

        On a GPU the allocator's own peak is taken.

        Args:
            gradients: bytes of the gradients of everything trained.
        """
        total = torch.cuda.max_memory_allocated() if self._on_gpu else self._before + self.peak
        resident = self._before + self._lasting + gradients
        return {"total": total, "resident": resident, "above_resident": total - resident}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is aten._local_scalar_dense.default:
            self.host_reads[self.phases.current] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)
