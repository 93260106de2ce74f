"""Decoding steps that are recorded once and replayed: launching 28 layers costs more than computing them.

A recorded step works on the very tensors that it was recorded on. So for each shape one set of rows stays,
and rows of that shape are copied into it before they go on.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from medvlm_r1.rollout.decoding_state import DecodingState

Step = Callable[[], None]
WARM_UP = 2  # steps before recording: libraries choose kernels and take their work spaces


def cuda_graph(step: Step, rewind: Step) -> Step:
    """Record ``step``, which must not wait for the device, as a CUDA graph.

    Args:
        rewind: puts back what a step has changed, so that warming up never runs past the last token.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
            rewind()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiled_cuda_graph(step: Step, rewind: Step) -> Step:
    """As :func:`cuda_graph`, of what torch's compiler makes of ``step``."""
    return cuda_graph(torch.compile(step, fullgraph=True, dynamic=False), rewind)


class GraphCache:
    """Replays steps of rows whose shape was seen before.

    Args:
        record: makes a replay of a step, as :func:`cuda_graph` does.
    """

    def __init__(self, record: Callable[[Step, Step], Step] = cuda_graph) -> None:
        self.record = record
        self._staying: dict[Hashable, list[Tensor]] = {}
        self._replays: dict[Hashable, Step] = {}

    def __call__(self, rows: DecodingState) -> None:
        """One step of ``rows``; its tensors may be others afterwards, with the values that are meant."""
        tensors = rows.tensors()
        shape = (rows.policy, rows.sampling, *(tensor.shape for tensor in tensors))
        staying = self._staying.setdefault(shape, tensors)
        for stays, new in zip(staying, tensors, strict=True):
            if stays is not new:
                stays.copy_(new)
        rows.use_tensors(staying)
        key = shape, rows.decoding.window
        if key not in self._replays:
            before = [tensor.clone() for tensor in staying]

            def rewind() -> None:
                for tensor, value in zip(staying, before, strict=True):
                    tensor.copy_(value)

            self._replays[key] = self.record(rows.shallow_copy().advance, rewind)
        self._replays[key]()
