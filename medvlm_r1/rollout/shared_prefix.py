"""The fast engine: prefill each prompt once, and decode its group of completions from that prefix.

A step runs every row's latest token through the model and samples the next one. Shapes stay the same and the
host reads nothing; every ``sync_every`` steps it reads which rows have ended: other prompts take their place,
or they are dropped. On a GPU a step is captured once per shape and replayed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.forward.decoding import CacheShape, KVCache
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Rollout, Sampling, build_rollout
from medvlm_r1.rollout.recorder import Recorder, Step, compiled_cuda_graph, cuda_graph
from medvlm_r1.rollout.replay_check import CaptureError
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.schedule import Schedule

WINDOW = 32  # attention covers a multiple of this number of a row's tokens
# Where steps are captured, windows are this number times a power of two, and the longest prompt is rounded up
# to a multiple, so that there are few shapes.
RECORDED_WINDOW = 64
PROMPT_MULTIPLE = 256
log = logging.getLogger("medvlm_r1")


@dataclass(frozen=True)
class SharedPrefixEngine:
    """Rollouts from one copy of each prompt's keys.

    Args:
        sync_every: steps after which the host reads which rows have ended.
        compact: drop rows that have ended; the noise of the others does not depend on it.
        max_rows: rows that decode together; further prompts wait until others have ended.
        max_memory_gb: GB (1e9 bytes) of keys and values; further prompts wait too.
        record: ``auto`` captures steps on a GPU and compares some of their replays with plain steps,
            ``verify`` compares all, ``off`` captures none.
        compiled: compile captured steps: faster, after a minute per shape.
        keep_memory: keep keys, values and recordings for the next rollout.
        capture: captures a step, as :func:`~medvlm_r1.rollout.recorder.cuda_graph` does, which is the default
            on a GPU; on a CPU none is captured.

    Raises:
        ValueError: a value is out of range.
    """

    sync_every: int = 8
    compact: bool = True
    max_rows: int = 128
    max_memory_gb: float = 6.0
    record: Literal["auto", "verify", "off"] = "auto"
    compiled: bool = False
    keep_memory: bool = True
    capture: Callable[[Step], Step] | None = None
    recorder: Recorder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("sync_every", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} is {getattr(self, name)}: it must be at least 1")
        if self.max_memory_gb <= 0:
            raise ValueError(f"rollout.max_memory_gb is {self.max_memory_gb}: it must be above 0")
        if self.record not in ("auto", "verify", "off"):
            raise ValueError(f"rollout.record is {self.record!r}: use auto, verify or off")
        capture = self.capture or (compiled_cuda_graph if self.compiled else cuda_graph)
        object.__setattr__(self, "recorder", Recorder(capture, verify=self.record == "verify"))

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        """Sample completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        graphs = self.capture is not None or policy.device.type == "cuda"
        decode = partial(self._decode, policy, prompts, sampling, key)
        with policy.sampling_mode():
            schedule = self._replay(decode) if graphs and self.record != "off" else None
            schedule = schedule or decode(recorder=None)
        return build_rollout(policy, schedule.tokens, *schedule.records)

    def _replay(self, decode: Callable[..., Schedule]) -> Schedule | None:
        """Sample by captured steps; ``None``, with a warning, once one was wrong."""
        if self.recorder.failure:
            return None
        try:
            schedule = decode(recorder=self.recorder)
        except CaptureError as error:
            self.recorder.failure = str(error)
            log.warning(
                "a captured decoding step failed (%s): this rollout is sampled again without captured steps, "
                "and so are all later ones, which takes longer",
                error,
            )
            return None
        if not self.keep_memory:
            self.recorder.forget()
        return schedule

    def _decode(
        self,
        policy: Policy,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        key: NoiseKey,
        recorder: Recorder | None,
    ) -> Schedule:
        recorded, count = recorder is not None, len(prompts)
        longest = max(len(prompt.ids) for prompt in prompts)
        if recorder and (earlier := recorder.shape(sampling)):  # shapes only grow
            count, longest = max(count, earlier.prompts), max(longest, earlier.prompt_tokens)
        shape = self.shape(policy, sampling, count, longest, recorded)
        state = (recorder.state if recorder else DecodingState)(policy, sampling, shape)
        keys = key.completion_keys([p.sample.id for p in prompts], sampling.group_size)
        schedule = Schedule(state, prompts, keys, exact=not recorded if self.compact else None)
        while steps := schedule.next_steps(self.sync_every):
            for length in steps:
                state.window = attention_window(length, sampling.max_tokens, recorded)
                policy.counters["decode_rows"] += state.rows
                if recorder:
                    recorder.step(state)
                else:
                    state.advance()
        return schedule

    def shape(
        self, policy: Policy, sampling: Sampling, prompts: int, prompt_tokens: int, recorded: bool
    ) -> CacheShape:
        """Shape of the rows that decode together: as many prompts as the limits allow, and at least one."""
        group_size, tokens = sampling.group_size, sampling.max_tokens
        if recorded:
            prompt_tokens = -(-prompt_tokens // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
            prompts = 1 << (prompts - 1).bit_length()
        model = policy.sampling_model
        one = KVCache.size(model.config, CacheShape(1, group_size, prompt_tokens, tokens))
        limit = min(self.max_rows // group_size, int(self.max_memory_gb * 1e9 / (one * model.dtype.itemsize)))
        return CacheShape(max(1, min(prompts, limit)), group_size, prompt_tokens, tokens)


def attention_window(length: int, limit: int, recorded: bool) -> int:
    """Tokens per row that attention reads, for rows of ``length`` tokens."""
    if not recorded:
        return min(limit, -(-length // WINDOW) * WINDOW)
    return min(limit, max(RECORDED_WINDOW, 1 << (length - 1).bit_length()))
