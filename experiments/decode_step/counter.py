"""Kernels, bytes, copied keys and host reads of one decoding step on a GPU, counted without a GPU.

The step runs on fake tensors of device ``cuda``: they have shapes, strides and a device, but no storage.
"""

import ctypes
import dataclasses
import functools
import math
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.cpp_extension import include_paths, library_paths

from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.loading.architecture import load_config, meta_model, with_depth
from medvlm_r1.policy.loading.load import load_encoder
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.prompt_record import record_from_config
from medvlm_r1.rollout import draw
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Sampling

# A CPU build of torch asks for CUDA's device guard whenever a CUDA tensor is indexed.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
static impl::NoOpDeviceGuardImpl<DeviceType::CUDA> guard;
extern "C" void set_guard() {
  impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].store(&guard);
}
"""
KERNELS = {"isin": 3, "draw_from_logits": 2}  # more than one per operator
# of peft=lora
ADAPTED = ".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided"}
COPIES = {"clone", "_to_copy", "copy_", "cat", "index"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One decoding step.

    Attributes:
        prompt: tokens of each prompt, padding included.
        window: completion tokens that attention reads.
    """

    prompts: int
    group_size: int
    prompt: int = 704
    window: int = 512
    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    adapter: bool = False
    layers: int | None = None  # all


@dataclasses.dataclass
class Count:
    """Launches of kernels, bytes of their operands, copies of keys or values, reads by the host.

    ``least`` is the bytes of all weights of the language model, and of keys and values.
    """

    launches: int = 0
    bytes: int = 0
    key_copies: int = 0
    host_reads: int = 0
    least: int = 0


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Fake tensors of device ``cuda``, also in a CPU build of torch, which needs g++ for it.

    Raises:
        FileNotFoundError: there is no g++.
    """
    if not torch.cuda.is_available():
        _guard().set_guard()
    kernels = torch.library.Library("aten", "IMPL")
    # As in a CUDA build; a CPU build takes the norm apart.
    if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_rms_norm", "CUDA"):
        kernels.impl("_fused_rms_norm", lambda *_: None, "CUDA")
    had_triton, draw.HAS_TRITON = draw.HAS_TRITON, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        draw.HAS_TRITON = had_triton
        kernels._destroy()


@functools.cache
def _guard() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(GUARD)
        includes = [f"-I{path}" for path in include_paths()]
        links = [f"-L{path}" for path in library_paths()]
        command = [
            os.environ.get("CXX", "g++"),
            "-std=c++20",
            "-O0",
            "-shared",
            "-fPIC",
            *includes,
            str(source),
        ]
        subprocess.run([*command, "-o", str(library), *links, "-lc10"], check=True)
        return ctypes.CDLL(str(library))


class Counting(TorchDispatchMode):
    """Counts the operators of a GPU; see :class:`Count`.

    Operators that return views launch nothing. A broadcast operand counts once; an embedding or an indexed
    operand counts as far as it is read. A matrix product copies an operand with strides that cuBLAS does not
    take.
    """

    def __init__(self, keys_and_values: list[Tensor]) -> None:
        super().__init__()
        self.count, self.kernels = Count(), Counter()
        self._cache = {_storage(t) for t in keys_and_values}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.count.host_reads += 1
            return 0
        out = func(*args, **(kwargs or {}))
        ins, outs = (_fake(x) for x in ((args, kwargs), out))
        in_place = name.endswith("_") and not name.startswith("_")
        is_view = not in_place and outs and ins and _storage(outs[0]) == _storage(ins[0])
        if not outs or is_view or name in NO_KERNEL:
            return out
        kernels = KERNELS.get(name, 1)
        if name == "cat" and outs[0].dim() > 4:  # more dimensions than one kernel takes
            kernels = len(ins)
        if name in ("bmm", "mm", "addmm"):
            wrong = [t for t in ins[-2:] if not _for_cublas(t)]
            kernels += len(wrong)
            self.count.bytes += sum(2 * _bytes(t) for t in wrong)
            self.count.key_copies += sum(_storage(t) in self._cache for t in wrong)
        if name == "roll":  # copies what is not contiguous
            kernels += not ins[0].is_contiguous()
        if name in COPIES:
            sources = ins[1:] if name == "copy_" else ins
            self.count.key_copies += any(_storage(t) in self._cache for t in sources)
        self.kernels[name] += kernels
        self.count.launches += kernels
        self.count.bytes += _traffic(name, ins, outs)
        return out


def _traffic(name: str, ins: list[Tensor], outs: list[Tensor]) -> int:
    if name in ("embedding", "index", "gather", "index_select"):
        return 2 * sum(map(_bytes, outs))
    if name in ("index_put_", "index_copy_"):
        return 2 * _bytes(ins[-1])
    if name in ("copy_", "fill_", "zero_"):
        ins = ins[1:]
    return sum(map(_bytes, [*ins, *outs]))


def _bytes(t: Tensor) -> int:
    read = (n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)
    return math.prod(read) * t.element_size()


def _for_cublas(t: Tensor) -> bool:
    """Whether rows or columns are contiguous and do not overlap."""
    return any(x.stride(-1) == 1 and x.stride(-2) >= max(1, x.shape[-1]) for x in (t, t.mT))


def _fake(tree: object) -> list[Tensor]:
    return [t for t in tree_iter(tree) if isinstance(t, FakeTensor) and t.device.type == "cuda"]


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


@torch.no_grad()
def count_step(step: Step) -> tuple[Count, Counter]:
    """Count one decoding step in bf16 at real size, and its launches by operator."""
    policy = meta_policy(step)
    with fake_cuda():
        _on_cuda(policy)
        shape = CacheShape(step.prompts, step.group_size, step.prompt, step.window)
        state = DecodingState(policy, Sampling(step.group_size, step.window), shape)
        state.window = step.window
        cache = state.cache
        counting = Counting([cache.prefix, cache.suffix])
        with policy.sampling_mode(), counting:
            state.advance()
    counting.count.least = _least_bytes(policy) + _bytes(cache.prefix) + _bytes(cache.suffix)
    return counting.count, counting.kernels


def meta_policy(step: Step) -> Policy:
    """The step's policy in bf16 on the meta device."""
    config = load_config(step.model)
    config = with_depth(config, step.layers or config.text_config.num_hidden_layers, 1)
    tuning = Tuning("adapter", LoraConfig(r=16, target_modules=ADAPTED)) if step.adapter else Tuning()
    with torch.device("meta"):
        model = tuning.apply(meta_model(config, torch.bfloat16))
        policy = Policy(model, _encoder()).to("meta")
    for parameter in policy.trainable_parameters:  # PEFT's are fp32
        parameter.data = parameter.data.to(torch.bfloat16)
    return policy


def _on_cuda(policy: Policy) -> None:
    moved: dict[Tensor, Tensor] = {}  # a tied head stays tied
    for module in policy.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in moved:
                weight = torch.empty_like(parameter, device="cuda")
                moved[parameter] = torch.nn.Parameter(weight, requires_grad=False)
            module._parameters[name] = moved[parameter]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device="cuda")


@functools.cache
def _encoder() -> Encoder:
    """Any encoder: the step encodes no text."""
    return load_encoder(EMBEDDED, record_from_config("embedded", "medvlm_r1")[0])


def _least_bytes(policy: Policy) -> int:
    """Bytes of the weights that a step reads: layers, head and adapters, without tower and embeddings."""
    model = policy.sampling_model
    weights = {id(p): p for n, p in model.named_parameters() if "visual" not in n and "embed_tokens" not in n}
    head = model.get_output_embeddings().weight
    return sum(map(_bytes, ({**weights, id(head): head}).values()))
