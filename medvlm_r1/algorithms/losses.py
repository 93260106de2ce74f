"""The formulas: KL estimate, the policy losses of the GRPO family and the SFT loss.

Pure functions of tensors. Rows are prompt-major: row = prompt * group_size + completion.

Departures from the papers' released trainers:

1. Completions and rewards share one row order. (MedVLM-R1's trainer scores half the rows with
   another prompt's answer as soon as a device holds two prompts.)
2. A row whose mask is empty contributes 0 instead of NaN, and is counted by the caller.
3. CISPO's weight has the upper bound alone that its paper works with, written as 1 + clip_high.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rows = Float[Tensor, " rows"]
PerToken = Float[Tensor, "rows tokens"]

# exp(20) = 4.9e8: far above any KL worth training on, far below the overflow of fp32 at exp(88.7).
_MAX_LOG_RATIO = 20.0


def kl_k3(logprobs: PerToken, ref_logprobs: PerToken) -> PerToken:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = ref - policy.

    Non-negative and unbiased under samples of the policy (GRPO, equation 4). ``d`` is clamped at
    +-20 nats, so a token that the reference makes e^20 times likelier cannot overflow the loss.
    """
    d = (ref_logprobs - logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(d) - d


def importance(
    log_ratio: PerToken, mask: Bool[Tensor, "rows tokens"], level: Literal["token", "sequence", "completion"]
) -> PerToken:
    """How much likelier the policy finds a token, or the completion that it stands in, than the sampler did.

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
        elif level != "completion":
            raise ValueError(f"ratio is {level!r}: use 'token', 'sequence' or 'completion'")
        log_ratio = summed.expand_as(log_ratio)
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def grpo_loss(
    logprobs: PerToken,
    old_logprobs: PerToken,
    ref_logprobs: PerToken | None,
    advantages: Rows | PerToken,
    mask: Bool[Tensor, "rows tokens"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
    aggregate: Literal["sequence", "token"] = "sequence",
    denominator: float | None = None,
    weights: PerToken | None = None,
    ratio: Literal["token", "sequence", "completion"] = "token",
    surrogate: Literal["clipped", "weighted"] = "clipped",
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Policy loss with a KL term (GRPO, arXiv 2402.03300, equation 3, and its family).

    Args:
        logprobs: log-probability of each completion token under the policy; carries the gradient.
        old_logprobs: the same under the policy that sampled.
        ref_logprobs: the same under the reference; may be ``None`` when ``beta`` is 0.
        advantages: one per row, or one per token.
        mask: true on completion tokens up to and including the end of sequence.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        beta: weight of the KL estimate.
        aggregate: ``sequence`` averages over a row's tokens, then over rows (GRPO);
            ``token`` averages over all tokens (DAPO, arXiv 2503.14476).
        denominator: rows (``sequence``) or tokens (``token``) over all micro-batches and ranks, when
            this call sees only a part of them; by default what this call sees.
        weights: of each token's policy term, the KL estimate aside; truncated importance weights of
            the policy against the sampler (Ionides 2008, doi 10.1198/106186008X320456). No gradient.
        ratio: see :func:`importance`.
        surrogate: ``clipped`` is min(w A, clip(w) A), without gradient where the clip holds a token;
            ``weighted`` is sg(min(w, 1 + clip_high)) A log pi, in which every token keeps its gradient
            (CISPO, arXiv 2506.13585, equation 4).

    Returns:
        The loss, and sums for logging: ``tokens``, ``kl``, ``clipped`` (tokens held by the clip) and
        ``ratio``, each summed over the masked tokens.

    Raises:
        ValueError: ``beta`` is positive without reference log-probabilities.
    """
    w = importance(logprobs - old_logprobs, mask, ratio)  # pi / pi_old
    gain = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    if surrogate == "clipped":
        clipped = w.clamp(1 - clip_low, 1 + clip_high)
        per_token = -torch.min(w * gain, clipped * gain)  # -min[w A, clip(w, 1-e, 1+e) A]
        held = w * gain > clipped * gain
    elif surrogate == "weighted":
        per_token = -w.detach().clamp(max=1 + clip_high) * gain * logprobs  # -sg(min(w, 1+e)) A log pi
        held = w > 1 + clip_high
    else:
        raise ValueError(f"surrogate is {surrogate!r}: use 'clipped' or 'weighted'")
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
        stats = {
            "tokens": mask.sum(),
            "kl": torch.where(mask, kl, 0.0).sum(),
            "clipped": (held & mask).sum(),
            "ratio": torch.where(mask, w, 0.0).sum(),
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
