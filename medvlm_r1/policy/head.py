"""Log-probabilities from hidden states, without ever holding the logits of all tokens.

With Qwen2-VL's 151,936 entries, the fp32 logits of 16 completions of 512 tokens take 5 GB, and twice that
in the backward pass. Here they exist for :data:`CHUNK` tokens at a time, in both passes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024  # tokens: enough to keep a GPU busy, 0.6 GB of fp32 logits


def head_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    banned: Bool[Tensor, " vocabulary"],
    temperature: float,
) -> Float[Tensor, " tokens"]:
    """Log-probability of each target: temperature-scaled, banned ids masked, softmax in fp32.

    A banned target has minus infinity.

    Args:
        hidden: of the token before each target.
        weight: of the head, which has no bias.
    """
    return _HeadLogprobs.apply(hidden, weight, targets, banned, temperature)


def head_scores(
    hidden: Float[Tensor, "rows width"], weight: Tensor, banned: Tensor, temperature: float
) -> Float[Tensor, "rows vocabulary"]:
    """Log-probabilities of the whole vocabulary, as :func:`head_logprobs` has them of one token."""
    return _scores(hidden, weight, banned, temperature).log_softmax(-1)


def _scores(hidden: Tensor, weight: Tensor, banned: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    if temperature != 1:
        logits = logits / temperature
    return logits.masked_fill_(banned, -torch.inf)


class _HeadLogprobs(torch.autograd.Function):
    """The backward pass computes each chunk's logits again: a tenth of a step's work, for its memory."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, banned, temperature):
        logprobs, normalisers = [], []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = _scores(h, weight, banned, temperature)
            normaliser = logits.logsumexp(-1)
            logprobs.append(logits.gather(-1, t[:, None])[:, 0] - normaliser)
            normalisers.append(normaliser)
        ctx.save_for_backward(hidden, weight, targets, banned, torch.cat(normalisers))
        ctx.temperature = temperature
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, targets, banned, normalisers = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # in fp32, because it adds up over chunks
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            # d logprob / d logits = (one at the target - softmax) / temperature
            d = _scores(hidden[part], weight, banned, ctx.temperature)
            d.sub_(normalisers[part, None]).exp_().neg_()
            d.scatter_add_(-1, targets[part, None], torch.ones_like(d[:, :1]))
            d = d.mul_(gradient[part, None] / ctx.temperature).to(weight.dtype)
            if to_hidden is not None:
                to_hidden[part] = d @ weight
            if to_weight is not None:
                to_weight.add_(d.T @ hidden[part])
        return to_hidden, None if to_weight is None else to_weight.to(weight.dtype), None, None, None
