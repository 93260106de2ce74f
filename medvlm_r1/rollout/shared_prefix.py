"""The fast engine: every prompt is read once, and its whole group decodes from that one reading.

A step feeds every row's latest token to the model and draws the next one. Its shapes stay the same, and
nothing of it is read by the host; only every few steps the host looks which rows have ended, and goes on
with a smaller batch, or stops. On a GPU a step is recorded once for each shape and replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.cuda_graphs import Recorder, compiled_cuda_graph, cuda_graph
from medvlm_r1.rollout.engine import Rollout, Sampling, finished_rollout
from medvlm_r1.rollout.rows import Rows
from medvlm_r1.rollout.sampling_noise import DrawKey

WINDOW = 32  # own tokens are attended to in blocks of so many: what is still to come costs little
PROMPT_BLOCK = 64  # recorded prompts are padded to a multiple of it, so that few lengths are recorded


@dataclass(frozen=True)
class SharedPrefixEngine:
    """Rollouts from one copy of each prompt.

    Args:
        look_every: steps between two looks at which rows have ended.
        compact: go on without rows that have ended; what is drawn does not depend on it.
        compiled: have torch compile the steps that a GPU records: faster, after a minute for each shape.
        recorder: replays steps; by default a GPU's are recorded as CUDA graphs, and a CPU computes each.
    """

    look_every: int = 16
    compact: bool = True
    compiled: bool = False
    recorder: Recorder | None = None
    _graphs: Recorder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.look_every < 1:
            raise ValueError(f"rollout.look_every is {self.look_every}: it must be at least 1")
        object.__setattr__(self, "_graphs", Recorder(compiled_cuda_graph if self.compiled else cuda_graph))

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: DrawKey
    ) -> Rollout:
        """Draw completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        recorder = self.recorder or (self._graphs if policy.device.type == "cuda" else None)
        with policy.sampling():
            rows = Rows(policy, prompts, sampling, key, PROMPT_BLOCK if recorder else 1)
            rows.draw()
            for done in range(1, sampling.max_tokens):
                if done % self.look_every == 0:
                    ended = rows.look()
                    if ended.all():
                        break
                    if self.compact:
                        rows.compact(ended, in_powers=recorder is not None)
                rows.decoding.look_at(-(-done // WINDOW) * WINDOW)
                policy.counters["decode_rows"] += len(rows.at)
                if recorder:
                    recorder(rows)
                else:
                    rows.advance()
            # Copies: the next rollout may be recorded in these tensors.
            said = (x.clone() for x in (rows.tokens, rows.logprobs, rows.kept_mass))
            return finished_rollout(policy, *said)
