"""How much better a completion was than what it is compared with: the advantages of the GRPO family.

An estimator takes the rewards of one step, of all ranks, and gives one advantage a row. Rows are
prompt-major: row = prompt * group_size + completion.

Departures from the papers:

1. Equal rewards give exactly 0. Their mean may differ from them in the last bit, and what is left, divided by
   ``eps``, would be an advantage.
2. GDPO's last step divides by the batch's standard deviation without subtracting its mean, which is 0: each
   normalised term sums to 0 over its group. Groups without spread stay at 0 that way.
3. A-GRAE takes the share of right answers where the paper takes the mean reward, which is a rate only where
   the reward is nothing but right or wrong. A group that is all right or all wrong can still differ in its
   format; it is left alone. (The released code divides by 1 - sqrt(p) where equation 12 has sqrt(1 - p); this
   follows the equation.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medvlm_r1.rewards import RewardTable

Rows = Float[Tensor, " rows"]
PerToken = Float[Tensor, "rows tokens"]


class Advantages(Protocol):
    """From the rewards of all rows of a step, and whether each answer is right, to their advantages."""

    def __call__(self, table: RewardTable, right: Bool[Tensor, " rows"], group_size: int) -> Rows: ...


def in_groups(values: Rows, group_size: int) -> Float[Tensor, "prompts group"]:
    """The rows of each prompt side by side.

    Raises:
        ValueError: the rows are no whole number of groups, or a group has fewer than two rows.
    """
    if group_size < 2 or len(values) % group_size:
        raise ValueError(f"{len(values)} rows do not form groups of {group_size} (at least 2 a group)")
    return values.view(-1, group_size)


def centred(groups: Float[Tensor, "prompts group"]) -> Float[Tensor, "prompts group"]:
    """Each value minus its group's mean; exactly 0 where all are equal."""
    equal = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, groups - groups.mean(dim=1, keepdim=True))


@dataclass(frozen=True)
class GroupRelative:
    """The reward relative to its own group (GRPO, arXiv 2402.03300, section 4.1).

    Attributes:
        scale: ``std`` divides by the group's unbiased standard deviation, as the papers' trainer
            does; ``none`` does not (Dr. GRPO, arXiv 2503.20783).
        eps: added to the standard deviation.
    """

    scale: Literal["std", "none"] = "std"
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if self.scale not in ("std", "none"):
            raise ValueError(f"method.advantages.scale is {self.scale!r}: use 'std' or 'none'")

    def __call__(self, table: RewardTable, right: Bool[Tensor, " rows"], group_size: int) -> Rows:
        return self.relative(table.total, group_size)

    def relative(self, rewards: Rows, group_size: int) -> Rows:
        """Of plain rewards."""
        groups = in_groups(rewards, group_size)
        advantages = centred(groups)  # A = r - mean(r)
        if self.scale == "std":
            advantages = advantages / (groups.std(dim=1, keepdim=True) + self.eps)  # (r - mean) / (std + eps)
        return advantages.reshape(-1)


@dataclass(frozen=True)
class LeaveOneOut:
    """The reward minus the mean of the group's others (RLOO, arXiv 2402.14740, equation 8)."""

    def __call__(self, table: RewardTable, right: Bool[Tensor, " rows"], group_size: int) -> Rows:
        # r - (sum - r) / (G - 1) = (r - mean) G / (G - 1)
        return centred(in_groups(table.total, group_size)).reshape(-1) * group_size / (group_size - 1)


@dataclass(frozen=True)
class NoBaseline:
    """The reward as it is: whoever takes it normalises over the batch (REINFORCE++, arXiv 2501.03262)."""

    def __call__(self, table: RewardTable, right: Bool[Tensor, " rows"], group_size: int) -> Rows:
        return table.total


@dataclass(frozen=True)
class PerTerm:
    """Each reward term relative to its group, then summed (GDPO, arXiv 2601.05242).

    Summed first, a right answer in a wrong format and a wrong answer in a right format look alike.

    Attributes:
        eps: added to the standard deviations, of each term's groups and of the batch.
    """

    eps: float = 1e-4

    def __call__(self, table: RewardTable, right: Bool[Tensor, " rows"], group_size: int) -> Rows:
        group = GroupRelative("std", self.eps)
        summed = sum(table.weights[name] * group.relative(v, group_size) for name, v in table.terms.items())
        return summed / (summed.std() + self.eps)


@dataclass(frozen=True)
class Asymmetric:
    """Easy questions first, hard ones later, and right answers held back early (A-GRAE, arXiv 2602.05548).

    With p the share of right answers in a group and w that in the whole step, equations 12 and 13: the
    advantage A becomes w/2 * A / sqrt(p) + (1 - w)/2 * A / sqrt(1 - p), unless p is 0 or 1; positive ones
    are then multiplied by min(1, w / alpha).

    Attributes:
        of: the advantages that this reshapes.
        alpha: share of right answers from which on right ones count in full; the authors' code has 0.5 for
            the medical questions and 1 for mathematics.
    """

    of: Advantages
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"method.advantages.alpha is {self.alpha}: it must be above 0 and at most 1")

    def __call__(self, table: RewardTable, right: Bool[Tensor, " rows"], group_size: int) -> Rows:
        advantages = in_groups(self.of(table, right, group_size), group_size)
        rate = in_groups(right.float(), group_size).mean(dim=1, keepdim=True)  # p
        skill = right.float().mean()  # w
        hard, easy = advantages / rate.sqrt(), advantages / (1 - rate).sqrt()
        shifted = skill / 2 * hard + (1 - skill) / 2 * easy
        shifted = torch.where(shifted > 0, shifted * (skill / self.alpha).clamp(max=1), shifted)
        return torch.where((rate > 0) & (rate < 1), shifted, advantages).reshape(-1)


def to_go(per_token: PerToken) -> PerToken:
    """What is still to come at each token, itself included: sum over s >= t."""
    return per_token.flip(1).cumsum(1).flip(1)


def mean_and_deviation(
    values: PerToken, mask: Bool[Tensor, "rows tokens"], total: Callable[[Tensor], Tensor] = lambda sums: sums
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the masked tokens, over all ranks.

    Args:
        total: adds a tensor up over ranks.
    """
    values = torch.where(mask, values, 0.0).double()
    count, sums = total(torch.stack([mask.sum().double(), values.sum()]))
    mean = sums / count.clamp(min=1)
    squares = total(torch.where(mask, values - mean, 0.0).square().sum())
    return mean.float(), (squares / (count - 1).clamp(min=1)).sqrt().float()
