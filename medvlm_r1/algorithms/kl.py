"""The KL penalty towards the starting weights, and the three places where a method puts it."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from medvlm_r1.algorithms.advantages import reverse_cumsum
from medvlm_r1.algorithms.trajectory import Trajectory


@dataclass(frozen=True)
class KLPenalty:
    """Weight and place of the KL penalty.

    Attributes:
        beta: weight of the estimate; 0 needs no reference.
        placement: ``loss`` adds the estimate k3 to the loss (GRPO). ``reward`` subtracts a completion's sum
            of k1 from its reward (RLOO). ``token`` subtracts from each token's advantage the k1 of this token
            and all that follow (REINFORCE++, arXiv 2501.03262, equation 8).
    """

    beta: float = 0.04
    placement: Literal["loss", "reward", "token"] = "loss"

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"method.beta is {self.beta}: it must not be negative")
        if self.placement not in ("loss", "reward", "token"):
            raise ValueError(f"method.kl_placement is {self.placement!r}: use 'loss', 'reward' or 'token'")

    @property
    def loss_weight(self) -> float:
        """Weight of k3 in the loss."""
        return self.beta if self.placement == "loss" else 0.0

    @property
    def before_loss(self) -> bool:
        """Whether rewards or advantages depend on the KL estimate."""
        return self.beta > 0 and self.placement != "loss"

    def penalise(self, trajectory: Trajectory) -> Trajectory:
        """Add the reward term ``kl``, per completion; the identity for other placements."""
        if self.placement != "reward" or not self.beta:
            return trajectory
        return trajectory.with_reward("kl", trajectory.kl_k1.sum(1).cpu(), -self.beta)

    def token_penalty(self, trajectory: Trajectory) -> Float[Tensor, "rows tokens"] | None:
        """Penalty on each token's advantage; ``None`` for other placements."""
        if self.placement != "token" or not self.beta:
            return None
        return self.beta * reverse_cumsum(trajectory.kl_k1)
