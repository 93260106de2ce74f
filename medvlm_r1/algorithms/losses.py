"""The losses: the clipped policy loss of the GRPO family, the KL estimate k3, and the SFT loss.

Pure functions of tensors. Rows are prompt-major: row = prompt * group_size + completion.

Departures from the papers' released trainers:

1. Completions and rewards share one row order. (MedVLM-R1's trainer scores half the rows with
   another prompt's answer as soon as a device holds two prompts.)
2. A row whose mask is empty contributes 0 instead of NaN.
3. CISPO's weight has only the upper bound that its paper uses, written as 1 + clip_high.
"""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

Rows = Float[Tensor, " rows"]
PerToken = Float[Tensor, "rows tokens"]
Mask = Bool[Tensor, "rows tokens"]
Level = Literal["token", "sequence", "completion"]

# exp(20) = 4.9e8: far above any KL worth training on, far below the overflow of fp32 at exp(88.7).
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """Clipped policy loss with a KL term (GRPO, arXiv 2402.03300, equation 3, and its family).

    Attributes:
        clip_low, clip_high: the importance ratio is clipped to [1 - clip_low, 1 + clip_high].
        importance_sampling_level: ``token``, ``sequence`` or ``completion``; see :func:`importance_ratio`.
        policy_loss: ``clipped`` is min(w A, clip(w) A), without gradient where the clip is active (GRPO).
            ``weighted`` is sg(min(w, 1 + clip_high)) A log pi: every token keeps its gradient (CISPO, arXiv
            2506.13585, equation 4).
        loss_type: ``sequence`` averages over a completion's tokens, then over completions (GRPO). ``token``
            averages over all tokens (DAPO, arXiv 2503.14476). ``limit`` divides the sum over all tokens by
            completions times their limit (Dr. GRPO, arXiv 2503.20783).
        tis_cap: truncated importance sampling: weight each token by the probability ratio of trainer and
            sampler, up to this cap (Ionides 2008, doi 10.1198/106186008X320456); ``None`` does not.

    Raises:
        ValueError: a value is unknown, or two do not go together.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    importance_sampling_level: Level = "token"
    policy_loss: Literal["clipped", "weighted"] = "clipped"
    loss_type: Literal["sequence", "token", "limit"] = "sequence"
    tis_cap: float | None = None

    def __post_init__(self) -> None:
        for name in ("importance_sampling_level", "policy_loss", "loss_type"):
            value, known = getattr(self, name), get_args(get_type_hints(type(self))[name])
            if value not in known:
                raise ValueError(f"method.loss.{name} is {value!r}: use {', '.join(map(repr, known))}")
        level = self.importance_sampling_level
        if level != "token" and (self.policy_loss != "clipped" or self.tis_cap is not None):
            raise ValueError(
                f"importance_sampling_level={level} has one ratio per completion: policy_loss=weighted and "
                "tis_cap work per token and need importance_sampling_level=token"
            )
        if level == "completion" and self.loss_type != "sequence":
            raise ValueError("importance_sampling_level=completion needs loss_type=sequence")
        if self.tis_cap is not None and self.tis_cap < 1:
            raise ValueError(f"tis_cap is {self.tis_cap}: it must be at least 1, or null")

    def __call__(
        self,
        logprobs: PerToken,
        old_logprobs: PerToken,
        ref_logprobs: PerToken | None,
        advantages: Rows | PerToken,
        mask: Mask,
        beta: float = 0.04,
        denominator: float | Real[Tensor, ""] | None = None,
        sampling_logprobs: PerToken | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Compute the loss of some rows.

        Args:
            logprobs: log-probability of each completion token under the policy; carries the gradient.
            old_logprobs, ref_logprobs: the same under the policy that sampled, and under the reference, which
                may be ``None`` when ``beta`` is 0.
            advantages: one per row, or one per token.
            mask: true on completion tokens up to and including the end of sequence.
            beta: weight of the KL estimate k3.
            denominator: of the sum over rows or tokens, for a part of a minibatch or ``limit``; by default
                the rows or tokens of this call.
            sampling_logprobs: log-probabilities that the sampler recorded, for ``tis_cap``.

        Returns:
            The loss, and sums over the masked tokens for logging: ``tokens``, ``kl``, ``clipped`` (tokens at
            which the clip is active) and ``importance_ratio``.

        Raises:
            ValueError: ``beta`` is positive without reference log-probabilities.
        """
        w = importance_ratio(logprobs - old_logprobs, mask, self.importance_sampling_level)  # pi / pi_old
        advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
        per_token, is_clipped = self.surrogate(w, advantages, logprobs)
        if self.tis_cap is not None and sampling_logprobs is not None:
            per_token = per_token * (old_logprobs - sampling_logprobs).exp().clamp(max=self.tis_cap)
        kl = torch.zeros_like(logprobs)
        if ref_logprobs is not None:
            kl = kl_k3(logprobs, ref_logprobs)
            per_token = per_token + beta * kl
        elif beta:
            raise ValueError(f"beta is {beta}, so the loss needs the reference's log-probabilities")

        # `where`, not a product: a NaN outside the mask must not reach the sum.
        per_token = torch.where(mask, per_token, 0.0)
        if self.loss_type == "sequence":
            per_row = per_token.sum(1) / mask.sum(1).clamp(min=1)
            loss = per_row.sum() / (denominator or len(per_row))
        else:
            loss = per_token.sum() / (denominator or mask.sum().clamp(min=1))

        with torch.no_grad():
            stats = {
                "tokens": mask.sum(),
                "kl": torch.where(mask, kl, 0.0).sum(),
                "clipped": (is_clipped & mask).sum(),
                "importance_ratio": torch.where(mask, w, 0.0).sum(),
            }
        return loss, stats

    def surrogate(self, w: PerToken, advantages: Tensor, logprobs: PerToken) -> tuple[PerToken, Mask]:
        """Compute each token's loss without the KL term; a subclass can put another one here.

        Args:
            w: importance ratio pi / pi_old; carries the gradient.
            advantages: one column, or one per token.
            logprobs: log pi; carries the gradient.

        Returns:
            The loss, and whether the clip is active, of each token.
        """
        if self.policy_loss == "clipped":
            clipped = w.clamp(1 - self.clip_low, 1 + self.clip_high)
            # -min[w A, clip(w, 1-e, 1+e) A]
            return -torch.min(w * advantages, clipped * advantages), w * advantages > clipped * advantages
        bound = 1 + self.clip_high
        return -w.detach().clamp(max=bound) * advantages * logprobs, w > bound  # -sg(min(w, 1+e)) A log pi


def importance_ratio(log_ratio: PerToken, mask: Mask, level: Level) -> PerToken:
    """Importance ratio of policy and old policy, at each token.

    Args:
        log_ratio: log pi - log pi_old of each token.
        level: ``token``; ``sequence``: the geometric mean over the completion, at each of its tokens (GSPO,
            arXiv 2507.18071, equation 7); ``completion``: the product, as of one single action (RLOO).
    """
    log_ratio = torch.where(mask, log_ratio, 0.0)
    if level != "token":
        summed = log_ratio.sum(1, keepdim=True)
        if level == "sequence":
            summed = summed / mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = summed.expand_as(log_ratio)
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def kl_k3(logprobs: PerToken, ref_logprobs: PerToken) -> PerToken:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = log pi_ref - log pi.

    Non-negative and unbiased under samples of the policy (GRPO, equation 4). ``d`` is clamped at
    +-20 nats, so a token that the reference makes e^20 times likelier cannot overflow the loss.
    """
    d = (ref_logprobs - logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(d) - d


def sft_loss(
    logprobs: PerToken, mask: Mask, denominator: float | Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the completion tokens; the prompt carries no loss.

    Args:
        logprobs: log-probability of each target token; carries the gradient.
        mask: true on target tokens, the end of sequence included.
        denominator: tokens of the whole step, where this call sees only a part of it.
    """
    return -torch.where(mask, logprobs, 0.0).sum() / (denominator or mask.sum().clamp(min=1))
