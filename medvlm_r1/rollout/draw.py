"""Draw the next token of each row from its hidden state."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.policy.forward.lm_head import next_token_logprobs
from medvlm_r1.rollout.sampling_noise import Position, Sampling, gumbel_max_scores


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
    logprobs = next_token_logprobs(hidden, head_weight, banned, sampling.divisor)
    scores, kept_mass, entropy = gumbel_max_scores(logprobs, sampling, keys, steps)
    tokens = scores.argmax(-1)
    return Draw(tokens, logprobs.gather(-1, tokens[:, None])[:, 0], kept_mass, entropy)
