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


@dataclass(frozen=True)
class DrawKey:
    """What a rollout's draws depend on besides its rows.

    Attributes:
        seed: the run's seed.
        step: the optimiser step.
    """

    seed: int
    step: int

    def rows(self, sample_ids: Sequence[str], group_size: int) -> Int[Tensor, " rows"]:
        """One 32-bit key per completion, prompt-major."""
        samples = torch.tensor([zlib.crc32(s.encode()) for s in sample_ids])
        completions = torch.arange(group_size)
        key = _mix(torch.tensor(self.seed & _MASK) ^ 0x9E3779B9)
        key = _mix(key ^ (self.step & _MASK))
        key = _mix(key ^ samples)
        return _mix(key[:, None] ^ completions[None, :]).reshape(-1)


def gumbel_noise(
    rows: Int[Tensor, " rows"], position: int, vocabulary: int
) -> Float[Tensor, "rows vocabulary"]:
    """Standard Gumbel noise, so that argmax(logits + noise) is a draw from softmax(logits).

    Args:
        rows: 32-bit keys of :meth:`DrawKey.rows`.
        position: index of the token in its completion.
        vocabulary: number of token ids.
    """
    ids = torch.arange(vocabulary, device=rows.device)
    h = _mix(_mix(rows ^ position)[:, None] ^ ids[None, :])
    # 23 bits plus a half are exact in fp32 and lie strictly between 0 and 1.
    uniform = ((h >> 9).float() + 0.5) * 2.0**-23
    return -(-uniform.log()).log()


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit integer hash (Wellons' lowbias32), on int64 to keep the shifts logical."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
