"""The formulas: advantages, KL estimate, the clipped GRPO loss and the SFT loss.

Pure functions of tensors. Rows are prompt-major: row = prompt * group_size + completion.

Departures from the papers' released trainers:

1. Completions and rewards share one row order. (MedVLM-R1's trainer scores half the rows with
   another prompt's answer as soon as a device holds two prompts.)
2. A row whose mask is empty contributes 0 instead of NaN, and is counted by the caller.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rows = Float[Tensor, " rows"]
PerToken = Float[Tensor, "rows tokens"]

# exp(20) = 4.9e8: far above any KL worth training on, far below the overflow of fp32 at exp(88.7).
_MAX_LOG_RATIO = 20.0


def group_advantages(
    rewards: Rows, group_size: int, scale: Literal["std", "none"] = "std", eps: float = 1e-4
) -> Rows:
    """Advantage of each completion relative to its own group (GRPO, arXiv 2402.03300, section 4.1).

    Args:
        rewards: prompt-major total rewards.
        group_size: completions per prompt, G.
        scale: ``std`` divides by the group's unbiased standard deviation, as the papers' trainer
            does; ``none`` does not (Dr. GRPO, arXiv 2503.20783).
        eps: added to the standard deviation.

    Raises:
        ValueError: the rows are no whole number of groups, or a group has fewer than two rows.
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rows do not form groups of {group_size} (at least 2 a group)")
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)  # A = r - mean(r)
    if scale == "std":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)  # A = (r - mean) / (std + eps)
    elif scale != "none":
        raise ValueError(f"scale is {scale!r}: use 'std' or 'none'")
    return advantages.reshape(-1)


def kl_k3(logprobs: PerToken, ref_logprobs: PerToken) -> PerToken:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = ref - policy.

    Non-negative and unbiased under samples of the policy (GRPO, equation 4). ``d`` is clamped at
    +-20 nats, so a token that the reference makes e^20 times likelier cannot overflow the loss.
    """
    d = (ref_logprobs - logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(d) - d


def grpo_loss(
    logprobs: PerToken,
    old_logprobs: PerToken,
    ref_logprobs: PerToken | None,
    advantages: Rows,
    mask: Bool[Tensor, "rows tokens"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
    aggregate: Literal["sequence", "token"] = "sequence",
    denominator: float | None = None,
    weights: PerToken | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Clipped, KL-regularised policy loss (GRPO, arXiv 2402.03300, equation 3).

    Args:
        logprobs: log-probability of each completion token under the policy; carries the gradient.
        old_logprobs: the same under the policy that sampled.
        ref_logprobs: the same under the reference; may be ``None`` when ``beta`` is 0.
        advantages: one per row.
        mask: true on completion tokens up to and including the end of sequence.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        beta: weight of the KL estimate.
        aggregate: ``sequence`` averages over a row's tokens, then over rows (GRPO);
            ``token`` averages over all tokens (DAPO, arXiv 2503.14476).
        denominator: rows (``sequence``) or tokens (``token``) over all micro-batches and ranks, when
            this call sees only a part of them; by default what this call sees.
        weights: of each token's policy term, the KL estimate aside; truncated importance weights of
            the policy against the sampler (Ionides 2008, doi 10.1198/106186008X320456). No gradient.

    Returns:
        The loss, and sums for logging: ``tokens``, ``kl``, ``clipped`` (tokens held by the clip) and
        ``ratio``, each summed over the masked tokens.

    Raises:
        ValueError: ``beta`` is positive without reference log-probabilities.
    """
    ratio = (logprobs - old_logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()  # w = pi / pi_old
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = advantages.unsqueeze(1)
    per_token = -torch.min(ratio * gain, clipped * gain)  # -min[w A, clip(w, 1-e, 1+e) A]
    if weights is not None:
        per_token = per_token * weights
    kl = torch.zeros_like(logprobs)
    if ref_logprobs is not None:
        kl = kl_k3(logprobs, ref_logprobs)
        per_token = per_token + beta * kl
    elif beta:
        raise ValueError(f"beta is {beta}, so the loss needs the reference's log-probabilities")

    # `where`, not a product: a NaN outside the mask must not reach the sum.
    per_token = torch.where(mask, per_token, 0.0)
    if aggregate == "sequence":
        per_row = per_token.sum(1) / mask.sum(1).clamp(min=1)
        loss = per_row.sum() / (denominator or len(per_row))
    elif aggregate == "token":
        loss = per_token.sum() / (denominator or mask.sum().clamp(min=1))
    else:
        raise ValueError(f"aggregate is {aggregate!r}: use 'sequence' or 'token'")

    with torch.no_grad():
        held = (ratio * gain > clipped * gain) & mask
        stats = {
            "tokens": mask.sum(),
            "kl": torch.where(mask, kl, 0.0).sum(),
            "clipped": held.sum(),
            "ratio": torch.where(mask, ratio, 0.0).sum(),
        }
    return loss, stats


def sft_loss(
    logprobs: PerToken, mask: Bool[Tensor, "rows tokens"], denominator: float | None = None
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the completion tokens; the prompt carries no loss.

    Args:
        logprobs: log-probability of each target token; carries the gradient.
        mask: true on target tokens, the end of sequence included.
        denominator: tokens over all micro-batches and ranks, when this call sees a part of them.
    """
    return -torch.where(mask, logprobs, 0.0).sum() / (denominator or mask.sum().clamp(min=1))
