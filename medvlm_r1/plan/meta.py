"""Counting on the meta device: the real modules run on tensors that have shapes and no storage.

What a GPU would do differently there is put right here: a fused attention kernel is chosen, and the
few questions that code asks of a tensor's values are answered.
"""

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """Counts arithmetic, and the bytes of the tensor storages that are made inside it and still alive.

    Formulas are those of torch's ``FlopCounterMode``, which cannot be used itself: it tracks modules
    through hooks that keep recomputed activations alive. Works on real tensors too. On
    meta tensors it also answers what cannot be asked of them: a condition on values is false, so a mask
    always has padding in it and no check raises.

    Args:
        known: tensors that are counted elsewhere, such as parameters.
        wide: storages of tensors whose last dimension is this long are summed up apart.

    Attributes:
        flops: floating-point operations so far; a multiplication and an addition are two.
        live, live_wide: bytes alive now; those in tensors with a last dimension of ``wide``.
        peak, peak_wide: the most bytes alive at once while no wide tensor was alive, and while one was.
    """

    def __init__(self, known: Iterable[Tensor] = (), wide: int | None = None) -> None:
        super().__init__()
        self.flops = self.live = self.live_wide = self.peak = self.peak_wide = 0
        self._wide = wide
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, tuple[int, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
        if any(t.is_meta for t in tensors):
            if func is aten._local_scalar_dense.default:
                return False
            if not all(t.is_meta for t in tensors):  # grids stay on the host, where loops read them
                args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return out

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        size = storage.nbytes()
        wide = size if tensor.ndim > 1 and tensor.shape[-1] == self._wide else 0
        self._sizes[key] = size, wide
        self.live += size
        self.live_wide += wide
        if self.live_wide:
            self.peak_wide = max(self.peak_wide, self.live)
        else:
            self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        size, wide = self._sizes.pop(key)
        self.live -= size
        self.live_wide -= wide


@contextmanager
def fused_attention() -> Iterator[None]:
    """Send attention on meta tensors to the kernels that a GPU would take.

    Without a device to ask, torch falls back to the plain formula, which keeps every attention
    matrix. A GPU takes the memory-efficient kernel where there is a mask or fp32, FlashAttention
    otherwise. (A function mode would not reach what checkpointing recomputes in the backward pass.)
    """
    plain = functional.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **others):
        if not query.is_meta:
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
        if attn_mask is None and query.dtype != torch.float32:
            flash = aten._scaled_dot_product_flash_attention
            return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        if attn_mask is not None:
            # as torch does: a bias of the queries' type, its rows aligned to 8 entries
            rows, heads, length, seen = (*query.shape[:3], key.shape[2])
            bias = query.new_empty(*attn_mask.shape[:3], math.ceil(seen / 8) * 8)[..., :seen]
            attn_mask = bias.expand(rows, heads, length, seen)
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
