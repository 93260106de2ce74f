"""Draw the next token of each row from its hidden state.

On a GPU with Triton, :mod:`~medvlm_r1.rollout.draw_triton` reads the logits once. Elsewhere, and with top-k
or top-p, torch computes log-probabilities, noise, scores and entropy one after the other.
"""

import warnings
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.policy.forward.lm_head import next_token_logprobs
from medvlm_r1.rollout.sampling_noise import Position, Sampling, gumbel_max_scores

HAS_TRITON = find_spec("triton") is not None


class Draw(NamedTuple):
    """One token per row.

    Attributes:
        logprobs: of the tokens, under the distribution before truncation.
        kept_mass: probability mass inside top-k and top-p.
        entropy: in nats, before truncation; 0 in greedy decoding.
    """

    tokens: Int[Tensor, " rows"]
    logprobs: Float[Tensor, " rows"]
    kept_mass: Float[Tensor, " rows"]
    entropy: Float[Tensor, " rows"]


@torch.no_grad()
def draw(
    hidden: Float[Tensor, "rows width"],
    head_weight: Float[Tensor, "vocabulary width"],
    banned: Bool[Tensor, " vocabulary"],
    sampling: Sampling,
    keys: Int[Tensor, " rows"],
    steps: Position,
) -> Draw:
    """Sample the next token of each row by Gumbel-max; the argmax at temperature 0.

    Args:
        banned: ids of probability 0.
        keys: of :meth:`~medvlm_r1.rollout.sampling_noise.NoiseKey.completion_keys`, one per row.
        steps: index of the token in its completion, of each row or of all.
    """
    has_kernel = hidden.is_meta or (hidden.is_cuda and HAS_TRITON)  # on meta, the plan counts a GPU's kernels
    if has_kernel and sampling.top_k == 0 and sampling.top_p == 1:
        drawn = draw_from_logits(hidden @ head_weight.T, banned, sampling.temperature, keys ^ steps)
        tokens, logprobs, entropy = drawn
        return Draw(tokens, logprobs, torch.ones_like(logprobs), entropy)
    return _draw(next_token_logprobs(hidden, head_weight, banned, sampling.divisor), sampling, keys, steps)


def _draw(
    logprobs: Float[Tensor, "rows vocabulary"],
    sampling: Sampling,
    keys: Int[Tensor, " rows"],
    steps: Position,
) -> Draw:
    scores, kept_mass, entropy = gumbel_max_scores(logprobs, sampling, keys, steps)
    tokens = scores.argmax(-1)
    return Draw(tokens, logprobs.gather(-1, tokens[:, None])[:, 0], kept_mass, entropy)


@torch.library.custom_op("medvlm_r1::draw_from_logits", mutates_args=())
def draw_from_logits(
    logits: Tensor, banned: Tensor, temperature: float, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels of :mod:`~medvlm_r1.rollout.draw_triton` as one operator, for ``torch.compile``.

    If Triton fails, as it does without a C compiler, torch draws from then on.
    """
    global HAS_TRITON
    if HAS_TRITON:
        try:
            from medvlm_r1.rollout import draw_triton  # imports triton

            return draw_triton.draw_from_logits(logits, banned, temperature, keys)
        except Exception as error:
            HAS_TRITON = False
            warnings.warn(f"Triton does not run here, so torch draws the tokens: {error!r}", stacklevel=2)
    sampling = Sampling(temperature=temperature)
    logprobs = (logits.float() / sampling.divisor).masked_fill_(banned, -torch.inf).log_softmax(-1)
    tokens, logprobs, _, entropy = _draw(logprobs, sampling, keys, 0)
    return tokens, logprobs, entropy


@draw_from_logits.register_fake
def _(logits: Tensor, banned: Tensor, temperature: float, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logprobs, entropy = (torch.empty_like(keys, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(keys), logprobs, entropy
