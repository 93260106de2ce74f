"""Count operations and bytes of real modules on the meta device, where tensors have shapes but no storage.

The counts are those of a GPU: attention uses the fused kernels, and conditions on the values of meta
tensors are false.
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


# Operators that only allocate, and those that read or write as many entries as they return or are given,
# whatever the size of the tensor that they index.
_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_READS_SOME = {"embedding", "gather", "index", "index_select"}
_WRITES_SOME = {"index_copy", "index_copy_", "index_put", "index_put_", "scatter_", "scatter_add_"}
_OVERWRITES = {"copy_", "fill_", "zero_"}
# Operators of several kernels.
_KERNELS = {"isin": 3, "draw_from_logits": 2}


class Ledger(TorchDispatchMode):
    """Counts operations, operand bytes and kernels, and bytes of tensor storages created inside the context.

    An operator counts as one kernel, unless it returns a view or allocates; a kernel reads its inputs and
    writes its outputs once. The formulas for operations are those of torch's ``FlopCounterMode``, which does
    not fit here: its module hooks keep recomputed activations alive. Works on real tensors too. On meta
    tensors every condition on values is false, so a mask always has padding and no check raises.

    Args:
        excluded: tensors that the caller counts elsewhere, such as parameters.
        wide: size of a last dimension; bytes of such tensors (the logits) also count separately.

    Attributes:
        flops: floating-point operations; a multiplication and an addition are two.
        traffic: bytes that kernels read and write.
        launches: number of kernels.
        live: bytes alive now.
        live_wide: those of them in wide tensors.
        peak: maximum of ``live`` while no wide tensor was alive.
        peak_wide: maximum of ``live`` while a wide tensor was alive.
    """

    def __init__(self, excluded: Iterable[Tensor] = (), wide: int | None = None) -> None:
        super().__init__()
        self.flops = self.live = self.live_wide = self.peak = self.peak_wide = 0
        self.traffic = self.launches = 0
        self._wide = wide
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        self._sizes: dict[int, tuple[int, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
        if any(t.is_meta for t in tensors):
            if func is aten._local_scalar_dense.default:
                return False
            if func is aten._is_all_true.default:  # of a check, which passes
                return torch.tensor(True)
            if not all(t.is_meta for t in tensors):  # grids stay on the host, where loops read them
                args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            # products with an out_dtype: torch's formula takes their dtype for the shape of the result
            operands = tensors if func._overloadname == "dtype" else args
            self.flops += formula(*operands, **kwargs, out_val=out)
        results = [t for t in tree_iter(out) if isinstance(t, Tensor)]
        self._count_kernel(func, tensors, results)
        for tensor in results:
            self._enter(tensor)
        return out

    def _count_kernel(self, func, tensors: list[Tensor], results: list[Tensor]) -> None:
        name = func._overloadpacket.__name__
        storages = {t.untyped_storage()._cdata for t in tensors}
        is_view = not func._schema.is_mutable and all(t.untyped_storage()._cdata in storages for t in results)
        if is_view or name in _ALLOCATES or not results:
            return
        self.launches += _KERNELS.get(name, 1)
        if name == "cat" and results[0].ndim > 4:  # more dimensions than one kernel takes
            self.launches += len(tensors) - 1
        if name in _READS_SOME:
            tensors = results
        elif name in _WRITES_SOME:
            tensors = results = tensors[-1:]
        elif name in _OVERWRITES:
            tensors = tensors[1:]
        self.traffic += sum(_operand_bytes(t) for t in (*tensors, *results))

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._excluded or key in self._sizes:
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


def _operand_bytes(tensor: Tensor) -> int:
    """Bytes of the entries in memory: an expanded dimension has one."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size() if tensor.numel() else 0


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Compute attention and torch's RMSNorm on meta tensors with the kernels of a GPU.

    On meta torch falls back to plain formulas; that of attention stores the attention matrix. A GPU uses the
    memory-efficient kernel for fp32 or with a mask, and FlashAttention otherwise. A function mode would
    miss the recomputation of checkpointing in the backward pass, so this replaces the functions themselves.
    """
    plain, plain_norm = functional.scaled_dot_product_attention, functional.rms_norm

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **others):
        if not query.is_meta:
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
        if attn_mask is None and query.dtype != torch.float32:
            flash = aten._scaled_dot_product_flash_attention
            return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        if attn_mask is not None:
            # like torch: a bias of the queries' dtype, with rows aligned to 8 entries
            rows, heads, length, keys = (*query.shape[:3], key.shape[2])
            bias = query.new_empty(*attn_mask.shape[:3], math.ceil(keys / 8) * 8)[..., :keys]
            attn_mask = bias.expand(rows, heads, length, keys)
        needs_lse = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, needs_lse, dropout_p, is_causal, scale=scale)[0]

    def normalise(x, normalized_shape, weight=None, eps=None):
        if not x.is_meta:
            return plain_norm(x, normalized_shape, weight, eps)
        return x.neg() if weight is None else x * weight  # like the fused norm: one kernel

    functional.scaled_dot_product_attention, functional.rms_norm = attend, normalise
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, functional.rms_norm = plain, plain_norm
