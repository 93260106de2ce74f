"""Counters of the work done, and the seconds of each phase of a step."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

COUNTS = ("images_encoded", "prefill_tokens", "decode_rows")
COUNTS += ("device_syncs", "captures", "replays", "seconds_check", "forward_tokens", "lm_head_tokens")


class Counters(Counter[str]):
    """Numbers by name since the last :meth:`take`.

    ========================  ==================================================================
    images_encoded            images that went through the vision tower
    prefill_tokens            prompt tokens of the prefill
    decode_rows               rows times steps of decoding
    device_syncs              times that decoding waited for the device
    captures, replays         decoding steps captured as CUDA graphs, and replayed
    forward_tokens            tokens through the layers in log-probability passes
    lm_head_tokens            tokens through the LM head in log-probability passes
    seconds_<phase>           sample, score, reference, train, update; check: of replayed steps, in sample
    ========================  ==================================================================
    """

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block, GPU work included."""
        begin = _now()
        try:
            yield
        finally:
            self[f"seconds_{phase}"] += _now() - begin

    def take(self) -> dict[str, float]:
        """Return the numbers, all of :data:`COUNTS` among them, and start again at 0."""
        counts = dict.fromkeys(COUNTS, 0) | dict(self)
        self.clear()
        return counts


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
