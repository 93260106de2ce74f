"""What was computed, counted where it is computed, and how long each phase of a step took."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

COUNTS = (
    "images_encoded",
    "prefill_tokens",
    "decode_rows",
    "device_syncs",
    "forward_tokens",
    "lm_head_tokens",
)


class Counters(Counter[str]):
    """Numbers by name, since they were last taken.

    ========================  ==================================================================
    images_encoded            pictures that went through the vision tower
    prefill_tokens            prompt tokens read before decoding
    decode_rows               rows times steps that decoding fed to the model
    device_syncs                times that decoding waited to see which rows had ended
    forward_tokens               tokens through the layers in log-probability passes
    lm_head_tokens               tokens whose logits were computed in those
    seconds_<phase>           sample, score, reference, train, update
    ========================  ==================================================================
    """

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds that the block takes, work on the GPU included."""
        begin = _now()
        try:
            yield
        finally:
            self[f"seconds_{phase}"] += _now() - begin

    def take(self) -> dict[str, float]:
        """The numbers so far, all of :data:`COUNTS` among them; counting starts again at 0."""
        taken = dict.fromkeys(COUNTS, 0) | dict(self)
        self.clear()
        return taken


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
