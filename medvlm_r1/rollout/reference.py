"""The reference engine: transformers' ``generate``, with noise that depends on the row alone.

Every completion is a row of its own from the first token on: slow and plain. Tests compare the fast engine
with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Rollout, Sampling, build_rollout
from medvlm_r1.rollout.sampling_noise import NoiseKey, gumbel_max_scores


@dataclass(frozen=True)
class ReferenceEngine:
    """Rollouts through transformers' ``generate``.

    Args:
        max_rows: completions in one call of ``generate``.
    """

    max_rows: int = 64

    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        """Sample completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        count = max(1, self.max_rows // sampling.group_size)
        parts = [
            self._generate(policy, prompts[i : i + count], sampling, key)
            for i in range(0, len(prompts), count)
        ]
        return reduce(partial(Rollout.concat, pad_id=policy.pad_id), parts)

    def _generate(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        keys = key.completion_keys([p.sample.id for p in prompts], sampling.group_size).to(policy.device)
        sampler = _GumbelMax(keys, sampling, policy.banned)
        batch = collate(prompts, policy.pad_id, policy.device)
        tokens = policy.generate(batch, sampling.group_size, sampling.max_tokens, sampler)
        records = (sampler.logprobs, sampler.kept_mass, sampler.entropy)
        return build_rollout(policy, tokens, *(torch.stack(x[: tokens.shape[1]], dim=1) for x in records))


@dataclass
class _GumbelMax:
    """A logits processor whose argmax is the sample; keeps the records of each sample."""

    keys: Int[Tensor, " rows"]
    sampling: Sampling
    banned: Bool[Tensor, " vocabulary"]
    logprobs: list[Float[Tensor, " rows"]] = field(default_factory=list)
    kept_mass: list[Float[Tensor, " rows"]] = field(default_factory=list)
    entropy: list[Float[Tensor, " rows"]] = field(default_factory=list)

    def __call__(
        self, tokens: Int[Tensor, "rows length"], logits: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        scaled = logits.float() / self.sampling.divisor
        logprobs = scaled.masked_fill(self.banned, -torch.inf).log_softmax(-1)
        position = len(self.logprobs)
        scores, kept_mass, entropy = gumbel_max_scores(logprobs, self.sampling, self.keys, position)
        self.logprobs.append(logprobs.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1))
        self.kept_mass.append(kept_mass)
        self.entropy.append(entropy)
        return scores
