"""Triton kernels that draw each row's next token from its logits, reading them once.

A program of :func:`_draw_chunk` reads one chunk of one row's vocabulary: it adds the noise of
:func:`~medvlm_r1.rollout.sampling_noise.gumbel_noise` and keeps the best token and the sums of the softmax.
:func:`_join_chunks` joins the chunks of a row. Chunks are the same for any number of rows, and so is what is
drawn.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 4096  # logits per program: 16 per thread stay in registers
_SUMS = 3  # per chunk: maximum, sum of exp(logit - maximum), sum of that times (logit - maximum)
PerRow = tuple[Int[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " rows"]]


def draw_from_logits(
    logits: Float[Tensor, "rows vocabulary"],
    banned: Bool[Tensor, " vocabulary"],
    temperature: float,
    keys: Int[Tensor, " rows"],
) -> PerRow:
    """Token, its log-probability, and the entropy (0 at temperature 0) of each row.

    Args:
        banned: ids of probability 0.
        keys: of the completions, combined with the position by exclusive or.
    """
    rows, vocabulary = logits.shape
    chunks = triton.cdiv(vocabulary, CHUNK)
    sums = torch.empty(rows, chunks, _SUMS, device=logits.device)
    best = torch.empty(rows, chunks, 2, device=logits.device)  # score and logit
    best_id = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    logprobs, entropy = (torch.empty(rows, device=logits.device) for _ in range(2))
    greedy, inverse = temperature == 0, 1 / (temperature or 1.0)
    parts = (sums, best, best_id)
    _draw_chunk[rows, chunks](
        logits, logits.stride(0), banned, keys, *parts, vocabulary, inverse, greedy, CHUNK, num_warps=8
    )
    width = triton.next_power_of_2(chunks)
    _join_chunks[(rows,)](*parts, tokens, logprobs, entropy, chunks, greedy, width, num_warps=1)
    return tokens, logprobs, entropy


@triton.jit
def _mix(x):
    """``sampling_noise._mix`` on uint32, whose products wrap around and whose right shifts are logical."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _draw_chunk(
    logits,
    row_stride,
    banned,
    keys,
    sums,
    best,
    best_id,
    vocabulary,
    inverse_temperature,
    greedy: tl.constexpr,
    size: tl.constexpr,
):
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    ids = chunk * size + tl.arange(0, size)
    inside = ids < vocabulary
    excluded = tl.load(banned + ids, mask=inside, other=1).to(tl.int32) != 0
    x = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(excluded, -1e30, x * inverse_temperature)

    score = x
    if not greedy:
        key = _mix(tl.load(keys + row).to(tl.uint32))
        bits = _mix(key ^ ids.to(tl.uint32)) >> 9
        uniform = (bits.to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
        score = x - tl.log(-tl.log(uniform))
    # The maximum ignores what is not a number, and padding would win.
    score = tl.where(score == score, score, float("inf"))
    place = row * chunks + chunk
    winner = tl.argmax(score, 0)
    is_winner = tl.arange(0, size) == winner
    tl.store(best + place * 2, tl.max(score, 0))
    tl.store(best + place * 2 + 1, tl.max(tl.where(is_winner, x, float("-inf")), 0))
    tl.store(best_id + place, chunk * size + winner)

    maximum = tl.max(x, 0)
    difference = tl.where(excluded, -1e4, x - maximum)  # its exponential is 0, and 0 times it is 0
    weight = tl.exp(difference)
    tl.store(sums + place * 3, maximum)
    tl.store(sums + place * 3 + 1, tl.sum(weight, 0))
    tl.store(sums + place * 3 + 2, tl.sum(weight * difference, 0))


@triton.jit
def _join_chunks(
    sums, best, best_id, tokens, logprobs, entropy, chunks, greedy: tl.constexpr, width: tl.constexpr
):
    row, chunk = tl.program_id(0), tl.arange(0, width)
    inside = chunk < chunks
    place = row * chunks + chunk
    low = -1e30
    winner = tl.argmax(tl.load(best + place * 2, mask=inside, other=float("-inf")), 0)
    of_winner = row * chunks + winner
    maxima = tl.load(sums + place * 3, mask=inside, other=low)
    maximum = tl.max(maxima, 0)
    difference = tl.maximum(maxima - maximum, -1e4)  # finite for chunks without an allowed token
    factor = tl.exp(difference)
    masses = tl.load(sums + place * 3 + 1, mask=inside, other=0.0) * factor
    mass = tl.sum(masses, 0)
    weighted = tl.load(sums + place * 3 + 2, mask=inside, other=0.0) * factor + masses * difference
    log_mass = tl.log(mass)
    tl.store(tokens + row, tl.load(best_id + of_winner).to(tl.int64))
    tl.store(logprobs + row, tl.load(best + of_winner * 2 + 1) - maximum - log_mass)
    if greedy:
        tl.store(entropy + row, 0.0)
    else:
        tl.store(entropy + row, log_mass - tl.sum(weighted, 0) / mass)
