"""Decoding steps captured as CUDA graphs: launching the kernels of 28 layers takes longer than running them.

A graph reads and writes the addresses that it was captured with. So the rows of all rollouts live in the same
memory, and everything is captured again after the weights have moved. A recording proves itself: its replays
1, 2, 4, 8 and so on are compared with plain steps.
"""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medvlm_r1.policy.forward.decoding import CacheShape, KVCache
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.replay_check import CaptureError, ReplayCheck
from medvlm_r1.rollout.sampling_noise import Sampling

Step = Callable[[], None]
MOST = 32  # recordings; the least recently used is dropped
CHECK_EVERY = 256  # replays of a recording, besides powers of two


@functools.cache
def _pool_and_stream() -> tuple[Any, torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """Memory for the intermediate results of all graphs, which run one at a time, and the stream of captures.

    An empty graph keeps the memory when all others are dropped: libraries keep work spaces in it.
    """
    pool, stream, keeper = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph is empty
        with torch.cuda.graph(keeper, pool=pool, stream=stream, capture_error_mode="thread_local"):
            pass
    return pool, stream, keeper


def cuda_graph(step: Step, **options: Any) -> Step:
    """Capture ``step``, which must not synchronise with the device, as a CUDA graph; return its replay.

    The step must have run before, so that libraries have chosen their kernels; ``options`` are those of
    :class:`torch.cuda.graph`.
    """
    pool, stream, _ = _pool_and_stream()
    graph = torch.cuda.CUDAGraph()
    # thread_local: NCCL's watchdog queries events in a thread of its own, which would end a global capture.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local", **options):
        step()
    return graph.replay


def compiled(step: Step, **options: Any) -> Step:
    """Compile ``step`` for one shape; all shapes share the code, for which torch's limit is eight."""

    def run() -> None:
        with torch._dynamo.config.patch(recompile_limit=2 * MOST):
            torch.compile(step, fullgraph=True, dynamic=False, **options)()

    return run


def compiled_cuda_graph(step: Step) -> Step:
    """Compile ``step`` with torch, then capture it; see :func:`cuda_graph`."""
    compiled_step = compiled(step)
    compiled_step()
    return cuda_graph(compiled_step)


@dataclass
class _Recording:
    replay: Step
    replays: int = 0


class Recorder:
    """Captures a decoding step per shape by ``capture``, such as :func:`cuda_graph`, and replays it.

    Args:
        capture: may run the step, whose effect is undone.
        verify: compare every replay with a plain step, not only some.

    Attributes:
        failure: how a replay was wrong; nothing is captured after that.
    """

    def __init__(self, capture: Callable[[Step], Step] = cuda_graph, verify: bool = False) -> None:
        self.capture, self.verify = capture, verify
        self.failure: str | None = None
        self.forget()

    def forget(self) -> None:
        """Free the recordings and the memory of the rows."""
        self._addresses: list[int] = []
        self._memory: Tensor | None = None
        self._states: dict[Sampling, DecodingState] = {}
        self._recordings: OrderedDict[tuple, _Recording] = OrderedDict()

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
        if self._memory is not None:
            self._memory.nan_to_num_()  # a masked value that is not a number would spread
        if self.shape(sampling) == shape:
            return self._states[sampling]
        model = policy.sampling_model
        size = KVCache.size(model.config, shape)
        if self._memory is None or len(self._memory) < size:
            self.forget()  # frees the memory first
            self._addresses = addresses
            self._memory = torch.zeros(size, dtype=model.dtype, device=policy.device)
        self._recordings = OrderedDict((k, r) for k, r in self._recordings.items() if k[0] != sampling)
        self._states[sampling] = DecodingState(policy, sampling, shape, self._memory)
        return self._states[sampling]

    def step(self, state: DecodingState) -> None:
        """Advance ``state``, one of :meth:`state`, by one step.

        Raises:
            CaptureError: the step cannot be captured, or its replay differs from a plain step; the state is
                of no use then.
        """
        key = state.sampling, state.prompts, state.group_size, state.window
        counters = state.policy.counters
        counters["replays"] += 1
        if recording := self._recordings.get(key):
            self._recordings.move_to_end(key)
            recording.replays += 1
            is_power_of_two = recording.replays & (recording.replays - 1) == 0
            if not (self.verify or is_power_of_two or recording.replays % CHECK_EVERY == 0):
                recording.replay()
                return
        try:
            with counters.timed("check"):
                check = ReplayCheck(state)
                if recording is None:
                    recording = self._record(state, key)
                    check.undo()
                check.run(recording.replay)
        except BaseException:
            self.forget()  # a check clears keys and values
            raise

    def _record(self, state: DecodingState, key: tuple) -> _Recording:
        try:
            recording = self._recordings[key] = _Recording(self.capture(state.advance), replays=1)
        except RuntimeError as error:
            raise CaptureError(f"it cannot be captured: {error}") from error
        state.policy.counters["captures"] += 1
        if len(self._recordings) > MOST:
            self._recordings.popitem(last=False)
        return recording


def _addresses(policy: Policy) -> list[int]:
    """Where the weights lie that a step reads."""
    model = policy.sampling_model
    tensors = [*model.parameters(), *model.buffers(), policy.banned]
    for parameter in model.parameters():  # bitsandbytes: scales of 4-bit weights
        quantized = getattr(parameter, "quant_state", None)
        for state in (quantized, getattr(quantized, "state2", None)):
            tensors += [value for value in vars(state or object).values() if isinstance(value, Tensor)]
    return [tensor.data_ptr() for tensor in tensors]
