"""Random draws as a pure function of what is drawn.

``generate`` samples from global random state, so its draws depend on the batch, on the rank and on
whatever ran before. Here the noise of every (seed, step, question, completion, position, token) is
a hash of these six, so engines agree, and neither batch nor number of devices changes what a question
samples.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 0xFFFFFFFF
Scores = Float[Tensor, "rows vocabulary"]


@dataclass(frozen=True)
class NoiseKey:
    """What a rollout's draws depend on besides its rows.

    Attributes:
        seed: the run's seed.
        step: the optimiser step.
    """

    seed: int
    step: int

    def completion_keys(self, sample_ids: Sequence[str], group_size: int) -> Int[Tensor, " rows"]:
        """One 32-bit key per completion, prompt-major."""
        samples = torch.tensor([zlib.crc32(s.encode()) for s in sample_ids])
        completions = torch.arange(group_size)
        key = _mix(torch.tensor(self.seed & _MASK) ^ 0x9E3779B9)
        key = _mix(key ^ (self.step & _MASK))
        key = _mix(key ^ samples)
        return _mix(key[:, None] ^ completions[None, :]).reshape(-1)


def gumbel_max_scores(
    logprobs: Scores, sampling: "Sampling", rows: Int[Tensor, " rows"], position: int | Tensor
) -> tuple[Scores, Float[Tensor, " rows"]]:
    """Scores whose argmax is the draw of each row's next token.

    Args:
        logprobs: of the next token.
        rows: 32-bit keys of :meth:`NoiseKey.completion_keys`.
        position: index of the token in its completion.

    Returns:
        The scores, and the probability mass that top-k and top-p kept.
    """
    scores, kept = truncate(logprobs, sampling.top_k, sampling.top_p)
    if sampling.temperature > 0:
        scores = scores + gumbel_noise(rows, position, logprobs.shape[-1])
    return scores, kept


def truncate(logprobs: Scores, top_k: int, top_p: float) -> tuple[Scores, Float[Tensor, " rows"]]:
    """Set all but the top-k, then all but the top-p nucleus, to minus infinity.

    The token that crosses ``top_p`` is kept, so at least one always is.

    Returns:
        The truncated log-probabilities, not renormalised, and the probability mass kept.
    """
    whole = logprobs
    if 0 < top_k < logprobs.shape[-1]:
        least = logprobs.topk(top_k).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if top_p < 1:
        ranked, order = logprobs.softmax(-1).sort(descending=True, stable=True)
        outside = ranked.cumsum(-1) - ranked >= top_p
        logprobs = logprobs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    if logprobs is whole:
        return whole, torch.ones_like(whole[:, 0])
    return logprobs, logprobs.exp().sum(-1)


def gumbel_noise(
    rows: Int[Tensor, " rows"], position: int | Tensor, vocabulary: int
) -> Float[Tensor, "rows vocabulary"]:
    """Standard Gumbel noise, so that argmax(logits + noise) is a draw from softmax(logits).

    Args:
        rows: 32-bit keys of :meth:`NoiseKey.completion_keys`.
        position: index of the token in its completion.
        vocabulary: number of token ids.
    """
    ids = torch.arange(vocabulary, dtype=torch.int32, device=rows.device)
    h = _mix32(_mix(rows ^ position).to(torch.int32)[:, None] ^ ids)
    # 23 bits plus a half are exact in fp32 and lie strictly between 0 and 1.
    uniform = h.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit integer hash (Wellons' lowbias32), on int64 to keep the shifts logical."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _mix32(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The same bits in int32, in place: a third of the time where there is one hash per vocabulary entry.

    Products wrap around; the sign that a right shift drags along is masked away.
    """
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
