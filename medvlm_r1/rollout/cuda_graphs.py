"""Decoding steps captured as CUDA graphs: launching the kernels of 28 layers takes longer than running them.

A captured step works on the tensors that it was captured with. So each shape has one set of static tensors,
and the state of a rollout is copied into it before a step is replayed.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from medvlm_r1.rollout.decoding_state import DecodingState

Step = Callable[[], None]
WARM_UP = 2  # steps before the capture, in which libraries choose kernels and allocate work spaces


def cuda_graph(step: Step, rewind: Step) -> Step:
    """Capture ``step``, which must not synchronise with the device, as a CUDA graph; return its replay.

    ``rewind`` undoes a step, so that warming up never runs past the last token.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
            rewind()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiled_cuda_graph(step: Step, rewind: Step) -> Step:
    """Compile ``step`` with torch, then capture it; see :func:`cuda_graph`."""
    return cuda_graph(torch.compile(step, fullgraph=True, dynamic=False), rewind)


class GraphCache:
    """Captures a decoding step per shape by ``capture``, such as :func:`cuda_graph`, and replays it."""

    def __init__(self, capture: Callable[[Step, Step], Step] = cuda_graph) -> None:
        self.capture = capture
        self._static: dict[Hashable, list[Tensor]] = {}
        self._replays: dict[Hashable, Step] = {}

    def __call__(self, state: DecodingState) -> None:
        """Advance ``state`` by one step; it uses the static tensors afterwards."""
        tensors = state.tensors()
        shape = (state.policy, state.sampling, *(tensor.shape for tensor in tensors))
        static = self._static.setdefault(shape, tensors)
        for own, new in zip(static, tensors, strict=True):
            if own is not new:
                own.copy_(new)
        state.use_tensors(static)
        key = shape, state.decoding.window
        if key not in self._replays:
            before = [tensor.clone() for tensor in static]

            def rewind() -> None:
                for tensor, value in zip(static, before, strict=True):
                    tensor.copy_(value)

            self._replays[key] = self.capture(state.shallow_copy().advance, rewind)
        self._replays[key]()
