"""An advantage estimator: ranks within the group, so that the scale of a reward does not matter."""

from dataclasses import dataclass

from torch import Tensor

from medvlm_r1.algorithms.advantages import in_groups
from medvlm_r1.rewards import RewardTable


@dataclass(frozen=True)
class Ranks:
    """Share of the group's other completions with a lower reward, minus the share with a higher one."""

    def __call__(self, rewards: RewardTable, correct: Tensor, group_size: int) -> Tensor:
        groups = in_groups(rewards.total, group_size)
        lower = (groups[:, :, None] > groups[:, None, :]).sum(2)
        higher = (groups[:, :, None] < groups[:, None, :]).sum(2)
        return ((lower - higher) / (group_size - 1)).reshape(-1)
