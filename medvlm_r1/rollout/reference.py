"""The reference engine: transformers' ``generate``, with draws that are a function of the row.

Slow and plain: every completion is a row of its own from the first token on. Faster engines are
tested against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.draws import DrawKey, gumbel_noise
from medvlm_r1.rollout.engine import Rollout, Sampling, completion_mask

Scores = Float[Tensor, "rows vocabulary"]


@dataclass(frozen=True)
class ReferenceEngine:
    """Rollouts through transformers' ``generate``."""

    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: DrawKey
    ) -> Rollout:
        """Draw completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        rows = key.rows([p.sample.id for p in prompts], sampling.group_size).to(policy.device)
        sampler = _GumbelMax(rows, sampling, policy.banned)
        batch = collate(prompts, policy.pad_id, policy.device)
        tokens = policy.generate(batch, sampling.group_size, sampling.max_tokens, sampler)
        mask = completion_mask(tokens, policy.eos_ids)
        steps = tokens.shape[1]
        return Rollout(
            tokens=tokens,
            mask=mask,
            logprobs=torch.stack(sampler.logprobs[:steps], dim=1),
            kept_mass=torch.stack(sampler.kept_mass[:steps], dim=1),
            texts=[policy.encoder.decode(row[kept]) for row, kept in zip(tokens, mask, strict=True)],
            truncated=~torch.isin(tokens, torch.tensor(policy.eos_ids, device=tokens.device)).any(1),
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
        greedy = self.sampling.temperature == 0
        scaled = logits.float() / (1.0 if greedy else self.sampling.temperature)
        logprobs = scaled.masked_fill(self.banned, -torch.inf).log_softmax(-1)
        scores, kept = truncate(logprobs, self.sampling.top_k, self.sampling.top_p)
        if not greedy:
            scores = scores + gumbel_noise(self.rows, len(self.logprobs), logits.shape[-1])
        self.logprobs.append(logprobs.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1))
        self.kept_mass.append(kept)
        return scores


def truncate(logprobs: Scores, top_k: int, top_p: float) -> tuple[Scores, Float[Tensor, " rows"]]:
    """Set all but the top-k, then all but the top-p nucleus, to minus infinity.

    The token that crosses ``top_p`` is kept, so at least one always is.

    Returns:
        The truncated log-probabilities, not renormalised, and the probability mass kept.
    """
    if 0 < top_k < logprobs.shape[-1]:
        least = logprobs.topk(top_k).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if top_p < 1:
        ranked, order = logprobs.softmax(-1).sort(descending=True, stable=True)
        outside = ranked.cumsum(-1) - ranked >= top_p
        logprobs = logprobs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return logprobs, logprobs.exp().sum(-1)
