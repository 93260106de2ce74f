"""The most bytes alive at once, and the arithmetic, of a step."""

from collections.abc import Iterable
from typing import Any

import torch
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
        resident: weights, buffers and optimiser state, which were there before.

    Attributes:
        host_reads: values of tensors that the host waited for.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        resident = list(resident)
        super().__init__(known=resident)
        self.host_reads = 0
        self.resident_bytes = storage_bytes(resident)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is aten._local_scalar_dense.default:
            self.host_reads += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def peak_bytes(watch: Watch, gradients: int) -> dict[str, int]:
    """The peak of the step that ``watch`` saw: in total, and above what training holds anyway.

    On a GPU the allocator's own peak is taken.

    Args:
        gradients: bytes of the gradients of everything trained.
    """
    if torch.cuda.is_available():
        total = torch.cuda.max_memory_allocated()
    else:
        total = watch.resident_bytes + max(watch.peak, watch.peak_wide)
    held = watch.resident_bytes + gradients
    return {"total": total, "resident": held, "above_resident": total - held}
