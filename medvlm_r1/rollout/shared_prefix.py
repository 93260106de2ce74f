"""The fast engine: prefill each prompt once, and decode its group of completions from that prefix.

A step runs every active row's latest token through the model and samples the next one. Shapes stay the same
and the host reads nothing; every ``sync_every`` steps it reads which rows have ended, and drops them or
stops. On a GPU a step is captured once per shape and replayed.
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

WINDOW = 32  # attention covers a multiple of this number of a row's tokens, so that few shapes are captured
PROMPT_MULTIPLE = 64  # the same for prompts, where steps are captured


@dataclass(frozen=True)
class SharedPrefixEngine:
    """Rollouts from one copy of each prompt's keys.

    Args:
        sync_every: steps after which the host reads which rows have ended.
        compact: drop rows that have ended; the samples do not depend on it.
        compiled: compile captured steps: faster, after a minute per shape.
        graph_cache: captures and replays steps; by default CUDA graphs on a GPU, none on a CPU.

    Raises:
        ValueError: ``sync_every`` is below 1.
    """

    sync_every: int = 16
    compact: bool = True
    compiled: bool = False
    graph_cache: GraphCache | None = None
    _cuda_graphs: GraphCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sync_every < 1:
            raise ValueError(f"rollout.sync_every is {self.sync_every}: it must be at least 1")
        graphs = GraphCache(compiled_cuda_graph if self.compiled else cuda_graph)
        object.__setattr__(self, "_cuda_graphs", graphs)

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        """Sample completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        graphs = self.graph_cache or (self._cuda_graphs if policy.device.type == "cuda" else None)
        with policy.sampling_mode():
            state = DecodingState(policy, prompts, sampling, key, PROMPT_MULTIPLE if graphs else 1)
            state.sample()
            for length in range(1, sampling.max_tokens):
                if length % self.sync_every == 0:
                    ended = state.read_ended()
                    if ended.all():
                        break
                    if self.compact:
                        state.compact(ended, in_powers=graphs is not None)
                state.decoding.set_window(-(-length // WINDOW) * WINDOW)
                policy.counters["decode_rows"] += len(state.active)
                if graphs:
                    graphs(state)
                else:
                    state.advance()
            # Copies: the static tensors of a captured step are written again by the next rollout.
            return build_rollout(policy, *state.records())
