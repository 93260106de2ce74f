"""The reference engine: transformers' ``generate``, with draws that are a function of the row.

Slow and plain: every completion is a row of its own from the first token on. Faster engines are
tested against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Rollout, Sampling, build_rollout
from medvlm_r1.rollout.sampling_noise import NoiseKey, Scores, gumbel_max_scores


@dataclass(frozen=True)
class ReferenceEngine:
    """Rollouts through transformers' ``generate``."""

    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        """Draw completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        rows = key.completion_keys([p.sample.id for p in prompts], sampling.group_size).to(policy.device)
        sampler = _GumbelMax(rows, sampling, policy.banned)
        batch = collate(prompts, policy.pad_id, policy.device)
        tokens = policy.generate(batch, sampling.group_size, sampling.max_tokens, sampler)
        steps = tokens.shape[1]
        return build_rollout(
            policy,
            tokens,
            torch.stack(sampler.logprobs[:steps], dim=1),
            torch.stack(sampler.kept_mass[:steps], dim=1),
        )


@dataclass
class _GumbelMax:
    """A logits processor whose argmax is the draw; records each draw's log-probability."""

    rows: Int[Tensor, " rows"]
    sampling: Sampling
    banned: Tensor
    logprobs: list[Tensor] = field(default_factory=list)
    kept_mass: list[Tensor] = field(default_factory=list)

    def __call__(self, seen: Int[Tensor, "rows seen"], logits: Scores) -> Scores:
        scaled = logits.float() / self.sampling.divisor
        logprobs = scaled.masked_fill(self.banned, -torch.inf).log_softmax(-1)
        scores, kept = gumbel_max_scores(logprobs, self.sampling, self.rows, len(self.logprobs))
        self.logprobs.append(logprobs.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1))
        self.kept_mass.append(kept)
        return scores
