"""Sampling: its parameters, and its noise as a hash of (seed, step, question, completion, position, token).

``generate`` samples from global random state, so its samples depend on the batch, the rank and earlier calls.
The hash is the same in all engines, batches and numbers of devices. So are the samples in fp32 on a CPU; in
bf16 on a GPU, rounding depends on the shape of a batch, and may decide a near tie.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 0xFFFFFFFF
Logprobs = Float[Tensor, "rows vocabulary"]
Position = int | Int[Tensor, "#rows"]  # of all rows, or of each


@dataclass(frozen=True)
class Sampling:
    """Parameters of the sampler.

    Attributes:
        group_size: completions per prompt, G.
        max_tokens: limit of a completion, end of sequence included.
        temperature: divisor of the logits; 0 is greedy decoding.
        top_p: sample among the likeliest tokens whose mass reaches this share; 1 for all.
        top_k: sample among this number of likeliest tokens; 0 for all.

    Raises:
        ValueError: a value is out of range.
    """

    group_size: int = 1
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.max_tokens < 1:
            raise ValueError(
                f"group_size {self.group_size} and max_tokens {self.max_tokens} must be at least 1"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature {self.temperature} must be >= 0, top_p {self.top_p} in (0, 1] and "
                f"top_k {self.top_k} >= 0"
            )

    @property
    def divisor(self) -> float:
        """Divisor of the logits in recorded log-probabilities: the temperature, or 1 for greedy decoding."""
        return self.temperature or 1.0


@dataclass(frozen=True)
class NoiseKey:
    """Noise key of all rows of a rollout: the run's seed, and the number of training steps so far."""

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
    logprobs: Logprobs, sampling: Sampling, keys: Int[Tensor, " rows"], position: Position
) -> tuple[Logprobs, Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Scores whose argmax is the sample of each row's next token (Gumbel-max).

    Args:
        keys: of :meth:`NoiseKey.completion_keys`.
        position: index of the token in its completion.

    Returns:
        The scores; the probability mass inside top-k and top-p; the entropy before truncation.
    """
    scores, kept_mass = truncate(logprobs, sampling.top_k, sampling.top_p)
    if sampling.temperature == 0:
        return scores, kept_mass, torch.zeros_like(kept_mass)
    scores = scores + gumbel_noise(keys, position, logprobs.shape[-1])
    return scores, kept_mass, entropy(logprobs)


def entropy(logprobs: Logprobs) -> Float[Tensor, " rows"]:
    """Entropy of each row's distribution in nats; tokens of probability 0 add nothing.

    With S the sum of p, log S - sum(p log p) / S is the entropy whatever the last bits of the normaliser of
    ``logprobs``, which alone would cost 1e-5 at 151,936 tokens. The sums are in fp64, which MPS lacks.
    """
    wide = torch.float32 if logprobs.device.type == "mps" else torch.float64
    p = logprobs.exp()
    mass = p.sum(-1, dtype=wide)
    plogp = p.mul_(logprobs.clamp(min=-1e4))  # 0, not nan, at minus infinity
    return (mass.log() - plogp.sum(-1, dtype=wide) / mass).float()


def truncate(logprobs: Logprobs, top_k: int, top_p: float) -> tuple[Logprobs, Float[Tensor, " rows"]]:
    """Set all but the top-k, then all but the top-p nucleus, to minus infinity.

    The token that crosses ``top_p`` stays in, so there is always one.

    Returns:
        The truncated log-probabilities, not renormalised, and their probability mass.
    """
    original = logprobs
    if 0 < top_k < logprobs.shape[-1]:
        least = logprobs.topk(top_k).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if top_p < 1:
        ranked, order = logprobs.softmax(-1).sort(descending=True, stable=True)
        outside = ranked.cumsum(-1) - ranked >= top_p
        logprobs = logprobs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    if logprobs is original:
        return logprobs, torch.ones_like(logprobs[:, 0])
    return logprobs, logprobs.exp().sum(-1)


def gumbel_noise(
    keys: Int[Tensor, " rows"], position: Position, vocabulary: int
) -> Float[Tensor, "rows vocabulary"]:
    """Standard Gumbel noise: argmax(logits + noise) is a sample of softmax(logits)."""
    ids = torch.arange(vocabulary, dtype=torch.int32, device=keys.device)
    h = _mix32(_mix(keys ^ position).to(torch.int32)[:, None] ^ ids)
    # 23 bits plus a half are exact in fp32 and strictly between 0 and 1.
    uniform = h.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A bijective 32-bit integer hash (Wellons' lowbias32), on int64 so that right shifts are logical."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _mix32(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The same hash in int32 and in place: a third of the time for one hash per vocabulary entry.

    Products wrap around; the mask removes the sign bits of the arithmetic right shift.
    """
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
