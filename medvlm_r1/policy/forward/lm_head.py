"""Log-probabilities from hidden states, without the logits of all tokens in memory.

With Qwen2-VL's vocabulary of 151,936, the fp32 logits of 16 completions of 512 tokens take 5 GB, and twice
that in the backward pass. Here both passes hold the logits of :data:`CHUNK` tokens at a time.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 256  # tokens: 0.16 GB of fp32 logits
SMALL_BATCH = 32  # rows up to which a CPU computes the transposed product
VOCABULARY_SLICE = 8192  # entries per transposed product, so that it fits the CPU's cache

Hidden = Float[Tensor, "tokens width"]
Head = Float[Tensor, "vocabulary width"]
Banned = Bool[Tensor, " vocabulary"]
Logits = Float[Tensor, "tokens vocabulary"]


def target_logprobs(
    hidden: Hidden, weight: Head, targets: Int[Tensor, " tokens"], banned: Banned, temperature: float
) -> Float[Tensor, " tokens"]:
    """Log-probability of each target: logits divided by ``temperature``, banned ids masked, softmax in fp32.

    ``hidden`` is that of the token before each target. A banned target gets minus infinity.
    """
    return _TargetLogprobs.apply(hidden, weight, targets, banned, temperature)


def next_token_logprobs(hidden: Hidden, weight: Head, banned: Banned, temperature: float) -> Logits:
    """Log-probabilities of the full vocabulary, from the distribution of :func:`target_logprobs`."""
    return _masked_logits(hidden, weight, banned, temperature).log_softmax(-1)


def _masked_logits(hidden: Hidden, weight: Head, banned: Banned, temperature: float) -> Logits:
    is_small = hidden.device.type == "cpu" and len(hidden) <= SMALL_BATCH
    logits = (_transposed_product(hidden, weight) if is_small else hidden @ weight.T).float()
    if temperature != 1:
        logits = logits / temperature
    return logits.masked_fill_(banned, -torch.inf)


class _TargetLogprobs(torch.autograd.Function):
    """Saves no logits for the backward pass.

    d logprob / d hidden = (head row of the target - mean head row under the softmax) / temperature is as wide
    as the hidden state. With a frozen head, the forward pass computes it from the logits and saves it. With a
    trained head, whose gradient needs the logits again, the backward pass computes both.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, banned, temperature):
        trains_hidden, trains_weight = ctx.needs_input_grad[:2]
        logprobs, logsumexps, hidden_grads = [], [], []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = _masked_logits(h, weight, banned, temperature)
            logsumexps.append(logits.logsumexp(-1))
            logprobs.append(logits.gather(-1, t[:, None])[:, 0] - logsumexps[-1])
            if trains_hidden and not trains_weight:
                logit_grad = _logit_grad(logits, logsumexps[-1], t, temperature)
                hidden_grads.append(logit_grad.to(weight.dtype) @ weight)
        if hidden_grads:
            ctx.save_for_backward(torch.cat(hidden_grads))
        else:
            ctx.save_for_backward(hidden, weight, targets, banned, torch.cat(logsumexps))
        ctx.temperature = temperature
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        if len(ctx.saved_tensors) == 1:
            (hidden_grads,) = ctx.saved_tensors
            return gradient[:, None].to(hidden_grads.dtype) * hidden_grads, None, None, None, None
        hidden, weight, targets, banned, logsumexps = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)  # a sum over chunks
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = _masked_logits(hidden[part], weight, banned, ctx.temperature)
            logit_grad = _logit_grad(logits, logsumexps[part], targets[part], ctx.temperature)
            logit_grad = logit_grad.mul_(gradient[part, None]).to(weight.dtype)
            hidden_grad[part] = logit_grad @ weight
            weight_grad += logit_grad.T @ hidden[part]
        return hidden_grad, weight_grad.to(weight.dtype), None, None, None


def _transposed_product(hidden: Hidden, weight: Head) -> Logits:
    """``hidden @ weight.T`` as ``(weight @ hidden.T).T``, in slices of the vocabulary.

    A sixth faster for the 16 rows of a decoding step: CPU kernels split a product over its rows.
    """
    logits = hidden.new_empty(len(hidden), len(weight))
    for out, part in zip(logits.split(VOCABULARY_SLICE, dim=1), weight.split(VOCABULARY_SLICE), strict=True):
        out.copy_((part @ hidden.T).T)
    return logits


def _logit_grad(
    logits: Logits, logsumexps: Float[Tensor, " tokens"], targets: Int[Tensor, " tokens"], temperature: float
) -> Logits:
    """d logprob / d logits = (1 at the target - softmax) / temperature; overwrites ``logits``."""
    logit_grad = logits.sub_(logsumexps[:, None]).exp_().neg_()
    return logit_grad.scatter_add_(-1, targets[:, None], torch.ones_like(logit_grad[:, :1])).div_(temperature)
