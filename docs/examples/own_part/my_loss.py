"""A policy loss: a smooth gate in the place of the clip (SAPO, arXiv 2511.20347)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medvlm_r1.algorithms.losses import PolicyLoss


@dataclass(frozen=True)
class SoftGate(PolicyLoss):
    """The ratio w becomes 4 / t * sigmoid(t (w - 1)), with a temperature t for each sign of the advantage."""

    positive: float = 1.0
    negative: float = 1.05

    def surrogate(self, w: Tensor, advantages: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.where(advantages > 0, self.positive, self.negative)
        return -4 / t * torch.sigmoid(t * (w - 1)) * advantages, torch.zeros_like(w, dtype=torch.bool)
