"""Decoding steps captured as CUDA graphs: launching the kernels of 28 layers takes longer than running them.

A graph reads and writes the addresses that it was captured with. So the rows of all rollouts live in the same
memory, and everything is captured again after the weights have moved. A recording proves itself: its first
replay, and one of every :data:`CHECK_EVERY`, is compared with a plain step.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medvlm_r1.policy.forward.decoding import CacheShape, KVCache
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.sampling_noise import Sampling

Step = Callable[[], None]
PROMPT_MULTIPLE = 256  # the longest prompt is rounded up to a multiple, so that few shapes are captured
MOST = 32  # recordings; the least recently used is dropped
CHECK_EVERY = 256  # replays
# Largest difference of hidden states and keys, as a share of the largest entry: far above rounding, far below
# the effect of a wrong token or key.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


class MismatchError(RuntimeError):
    """A replayed step differs from a plain one."""


@functools.cache
def _pool() -> Any:
    """Memory of the intermediate results of all graphs: they run one at a time and leave nothing in it."""
    return torch.cuda.graph_pool_handle()


def cuda_graph(step: Step, rewind: Step, **options: Any) -> Step:
    """Capture ``step``, which must not synchronise with the device, as a CUDA graph; return its replay.

    ``rewind`` undoes the step that warms up, in which libraries choose kernels and allocate work spaces;
    ``options`` are those of :class:`torch.cuda.graph`.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        rewind()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: NCCL's watchdog queries events in a thread of its own, which would end a global capture.
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local", **options):
        step()
    return graph.replay


def compiled_cuda_graph(step: Step, rewind: Step) -> Step:
    """Compile ``step`` with torch, then capture it; see :func:`cuda_graph`."""
    return cuda_graph(compiled(step), rewind)


def compiled(step: Step, **options: Any) -> Step:
    """Compile ``step`` for one shape; all shapes share the code, for which torch's limit is eight."""

    def run() -> None:
        with torch._dynamo.config.patch(recompile_limit=2 * MOST):
            torch.compile(step, fullgraph=True, dynamic=False, **options)()

    return run


class Recorder:
    """Captures a decoding step per shape by ``capture``, such as :func:`cuda_graph`, and replays it.

    Args:
        verify: compare every replay with a plain step, not only some.

    Attributes:
        failure: how a replay was wrong; nothing is captured after that.
    """

    def __init__(self, capture: Callable[[Step, Step], Step] = cuda_graph, verify: bool = False) -> None:
        self.capture, self.verify = capture, verify
        self.failure: str | None = None
        self._replays = 0
        self.forget()

    def forget(self) -> None:
        """Free the recordings and the memory of the rows."""
        self._addresses: list[int] = []
        self._memory: Tensor | None = None
        self._states: dict[Sampling, DecodingState] = {}
        self._recordings: OrderedDict[tuple, Step] = OrderedDict()

    def fail(self, reason: str) -> None:
        """Free everything, and capture nothing from now on."""
        self.failure = reason
        self.forget()

    def shape(self, sampling: Sampling) -> CacheShape | None:
        """Shape of the rows that :meth:`state` returned last for ``sampling``."""
        return self._states[sampling].shape if sampling in self._states else None

    @property
    def count(self) -> int:
        """Number of recordings."""
        return len(self._recordings)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the keys and values of all rows."""
        return 0 if self._memory is None else self._memory.nbytes

    def state(self, policy: Policy, sampling: Sampling, shape: CacheShape) -> DecodingState:
        """The rows of a rollout; the same ones as long as ``shape`` stays the same for one ``sampling``.

        Forgets everything if the weights have moved, as by ``module.cpu()`` between fit and test.
        """
        if (addresses := _addresses(policy)) != self._addresses:
            self.forget()
            self._addresses = addresses
        state = self._states.get(sampling)
        if state and state.shape == shape:
            return state
        model = policy.sampling_model
        size = KVCache.size(model.config, shape)
        if self._memory is None or len(self._memory) < size:
            self.forget()
            self._addresses = addresses
            self._memory = torch.zeros(size, dtype=model.dtype, device=policy.device)
        self._recordings = OrderedDict((k, r) for k, r in self._recordings.items() if k[0] != sampling)
        self._states[sampling] = DecodingState(policy, sampling, shape, self._memory)
        return self._states[sampling]

    def step(self, state: DecodingState) -> None:
        """Advance ``state``, one of :meth:`state`, by one step.

        Raises:
            MismatchError: the replay differs from a plain step; the state is of no use then.
        """
        key = state.sampling, state.prompts, state.group_size, state.window
        counters = state.policy.counters
        is_due = self.verify or self._replays % CHECK_EVERY == CHECK_EVERY - 1
        self._replays += 1
        counters["replays"] += 1
        if key in self._recordings and not is_due:
            self._recordings.move_to_end(key)
            self._recordings[key]()
            return
        with counters.timed("check"):
            self._check(state, key)

    def _check(self, state: DecodingState, key: tuple) -> None:
        """Advance by a replay, after a plain step that it must equal; capture the step if it is new."""
        before, steps = state.snapshot(), state.steps[: state.rows].clone()
        state.advance()
        plain = state.keys_and_values(steps), state.hidden[: state.rows].clone()
        state.restore(before)
        if key not in self._recordings:
            state.policy.counters["captures"] += 1
            self._recordings[key] = self.capture(state.advance, lambda: state.restore(before))
            if len(self._recordings) > MOST:
                self._recordings.popitem(last=False)
        state.clear_keys_and_values(steps)
        self._recordings[key]()
        replayed = state.keys_and_values(steps), state.hidden[: state.rows].clone()
        for name, one, other in zip(("keys and values", "hidden states"), plain, replayed, strict=True):
            difference = float((one - other).abs().max() / one.abs().max())
            if not difference <= TOLERANCE[one.dtype]:  # nan differs
                raise MismatchError(f"{name} differ by {difference:.2g} of the largest")
        # Rounding may change a sample, so the samples are compared given the replay's hidden states.
        sampled = state.snapshot()
        state.restore(before)
        state.sample(replayed[1])
        for one, other in zip(state.snapshot(), sampled, strict=True):
            if not torch.allclose(one.float(), other.float(), rtol=0, atol=1e-3):
                raise MismatchError("the samples differ")


def _addresses(policy: Policy) -> list[int]:
    """Where the weights lie that a step reads."""
    model = policy.sampling_model
    tensors = [*model.parameters(), *model.buffers(), policy.banned]
    for parameter in model.parameters():  # bitsandbytes: scales of 4-bit weights
        quantized = getattr(parameter, "quant_state", None)
        for state in (quantized, getattr(quantized, "state2", None)):
            tensors += [value for value in vars(state or object).values() if isinstance(value, Tensor)]
    return [tensor.data_ptr() for tensor in tensors]
