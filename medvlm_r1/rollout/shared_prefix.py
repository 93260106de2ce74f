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
from medvlm_r1.rollout.cuda_graphs import GraphCache, compiled_cuda_graph, cuda_graph
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Rollout, Sampling, build_rollout
from medvlm_r1.rollout.sampling_noise import NoiseKey

WINDOW = 32  # own tokens are attended to in blocks of so many: what is still to come costs little
PROMPT_BLOCK = 64  # recorded prompts are padded to a multiple of it, so that few lengths are recorded


@dataclass(frozen=True)
class SharedPrefixEngine:
    """Rollouts from one copy of each prompt.

    Args:
        sync_every: steps between two looks at which rows have ended.
        compact: go on without rows that have ended; what is drawn does not depend on it.
        compiled: have torch compile the steps that a GPU records: faster, after a minute for each shape.
        graph_cache: replays steps; by default a GPU's are recorded as CUDA graphs, and a CPU computes each.
    """

    sync_every: int = 16
    compact: bool = True
    compiled: bool = False
    graph_cache: GraphCache | None = None
    _graphs: GraphCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sync_every < 1:
            raise ValueError(f"rollout.sync_every is {self.sync_every}: it must be at least 1")
        object.__setattr__(self, "_graphs", GraphCache(compiled_cuda_graph if self.compiled else cuda_graph))

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        """Draw completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        graph_cache = self.graph_cache or (self._graphs if policy.device.type == "cuda" else None)
        with policy.sampling_mode():
            rows = DecodingState(policy, prompts, sampling, key, PROMPT_BLOCK if graph_cache else 1)
            rows.draw()
            for done in range(1, sampling.max_tokens):
                if done % self.sync_every == 0:
                    ended = rows.read_ended()
                    if ended.all():
                        break
                    if self.compact:
                        rows.compact(ended, in_powers=graph_cache is not None)
                rows.decoding.set_window(-(-done // WINDOW) * WINDOW)
                policy.counters["decode_rows"] += len(rows.at)
                if graph_cache:
                    graph_cache(rows)
                else:
                    rows.advance()
            # Copies: the next rollout may be recorded in these tensors.
            said = (x.clone() for x in (rows.tokens, rows.logprobs, rows.kept_mass))
            return build_rollout(policy, *said)
