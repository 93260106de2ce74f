"""Log-probabilities from hidden states, without ever holding the logits of all tokens.

With Qwen2-VL's 151,936 entries, the fp32 logits of 16 completions of 512 tokens take 5 GB, and twice that
in the backward pass. Here they exist for :data:`CHUNK` tokens at a time, in both passes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 256  # tokens: 0.16 GB of fp32 logits of 151,936 entries
FEW = 32  # rows up to which a CPU takes the product the other way round
SLICE = 8192  # entries of the vocabulary: what is turned stays in the cache


def target_logprobs(
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


def next_token_logprobs(
    hidden: Float[Tensor, "rows width"], weight: Tensor, banned: Tensor, temperature: float
) -> Float[Tensor, "rows vocabulary"]:
    """Log-probabilities of the whole vocabulary, as :func:`target_logprobs` has them of one token."""
    return _scores(hidden, weight, banned, temperature).log_softmax(-1)


def _scores(hidden: Tensor, weight: Tensor, banned: Tensor, temperature: float) -> Tensor:
    few = hidden.device.type == "cpu" and len(hidden) <= FEW
    logits = (_of_few(hidden, weight) if few else hidden @ weight.T).float()
    if temperature != 1:
        logits = logits / temperature
    return logits.masked_fill_(banned, -torch.inf)


class _HeadLogprobs(torch.autograd.Function):
    """Keeps no logits for the backward pass.

    d logprob / d hidden = (row of the target - mean row under the softmax) / temperature is a vector as
    wide as the hidden state: where the head is frozen, it is computed with the logits and kept instead.
    Where the head is trained, its own gradient needs the logits again, so both are computed then.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, banned, temperature):
        moves_hidden, moves_weight = ctx.needs_input_grad[:2]
        logprobs, normalisers, slopes = [], [], []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = _scores(h, weight, banned, temperature)
            normalisers.append(logits.logsumexp(-1))
            logprobs.append(logits.gather(-1, t[:, None])[:, 0] - normalisers[-1])
            if moves_hidden and not moves_weight:
                slopes.append(_slope(logits, normalisers[-1], t, temperature).to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        else:
            ctx.save_for_backward(hidden, weight, targets, banned, torch.cat(normalisers))
        ctx.temperature = temperature
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return gradient[:, None].to(slopes.dtype) * slopes, None, None, None, None
        hidden, weight, targets, banned, normalisers = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight, dtype=torch.float32)  # because it adds up over chunks
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = _scores(hidden[part], weight, banned, ctx.temperature)
            slope = _slope(logits, normalisers[part], targets[part], ctx.temperature)
            slope = slope.mul_(gradient[part, None]).to(weight.dtype)
            to_hidden[part] = slope @ weight
            to_weight += slope.T @ hidden[part]
        return to_hidden, to_weight.to(weight.dtype), None, None, None


def _of_few(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T`` with the vocabulary along the rows of the product, a slice at a time.

    A sixth faster for the 16 rows of a decoding step: a CPU's product splits over rows.
    """
    logits = hidden.new_empty(len(hidden), len(weight))
    for place, part in zip(logits.split(SLICE, dim=1), weight.split(SLICE), strict=True):
        place.copy_((part @ hidden.T).T)
    return logits


def _slope(logits: Tensor, normalisers: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """d logprob / d logits, in the place of the logits: (1 at the target - softmax) / temperature."""
    slope = logits.sub_(normalisers[:, None]).exp_().neg_()
    return slope.scatter_add_(-1, targets[:, None], torch.ones_like(slope[:, :1])).div_(temperature)
