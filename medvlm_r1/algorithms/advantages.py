"""Advantage estimators of the GRPO family: how much better a completion is than others of its group.

An estimator takes the rewards of one step, of all ranks, and returns one advantage per row. Rows are
prompt-major: row = prompt * group_size + completion.

Departures from the papers:

1. Equal rewards give exactly 0. Their floating-point mean may differ from them in the last bit, and that
   difference, divided by ``eps``, would be an advantage.
2. GDPO's last step divides by the batch's standard deviation without subtracting its mean, which is 0: each
   normalised term sums to 0 over its group. Groups with equal rewards stay at 0 that way.
3. A-GRAE takes the share of correct answers where the paper takes the mean reward, which is a rate only where
   the reward is 0 or 1. A group that is all correct or all wrong can still differ in its format; it keeps its
   advantages. (The released code divides by 1 - sqrt(p) where equation 12 has sqrt(1 - p); this follows the
   equation.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medvlm_r1.rewards import RewardTable

Rows = Float[Tensor, " rows"]
PerToken = Float[Tensor, "rows tokens"]


@runtime_checkable
class Advantages(Protocol):
    """Computes the advantages of all rows of a step from their rewards and whether each answer is correct."""

    def __call__(self, rewards: RewardTable, correct: Bool[Tensor, " rows"], group_size: int) -> Rows: ...


def in_groups(values: Rows, group_size: int) -> Float[Tensor, "prompts group"]:
    """Reshape rows to one line per prompt.

    Raises:
        ValueError: the rows are no multiple of the group size, or a group has fewer than two rows.
    """
    if group_size < 2 or len(values) % group_size:
        raise ValueError(f"{len(values)} rows do not form groups of {group_size} (at least 2 a group)")
    return values.view(-1, group_size)


def centred(groups: Float[Tensor, "prompts group"]) -> Float[Tensor, "prompts group"]:
    """Subtract each group's mean; exactly 0 where all values are equal."""
    equal = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, groups - groups.mean(dim=1, keepdim=True))


@dataclass(frozen=True)
class GroupRelative:
    """Reward relative to its own group (GRPO, arXiv 2402.03300, section 4.1).

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

    def __call__(self, rewards: RewardTable, correct: Bool[Tensor, " rows"], group_size: int) -> Rows:
        return self.relative(rewards.total, group_size)

    def relative(self, rewards: Rows, group_size: int) -> Rows:
        groups = in_groups(rewards, group_size)
        advantages = centred(groups)  # A = r - mean(r)
        if self.scale == "std":
            advantages = advantages / (groups.std(dim=1, keepdim=True) + self.eps)  # (r - mean) / (std + eps)
        return advantages.reshape(-1)


@dataclass(frozen=True)
class LeaveOneOut:
    """Reward minus the mean of the group's other rewards (RLOO, arXiv 2402.14740, equation 8)."""

    def __call__(self, rewards: RewardTable, correct: Bool[Tensor, " rows"], group_size: int) -> Rows:
        # r - (sum - r) / (G - 1) = (r - mean) G / (G - 1)
        return centred(in_groups(rewards.total, group_size)).reshape(-1) * group_size / (group_size - 1)


@dataclass(frozen=True)
class NoBaseline:
    """The reward itself, for methods that normalise over the batch (REINFORCE++, arXiv 2501.03262)."""

    def __call__(self, rewards: RewardTable, correct: Bool[Tensor, " rows"], group_size: int) -> Rows:
        return rewards.total


@dataclass(frozen=True)
class PerTerm:
    """Each reward term relative to its group, then summed (GDPO, arXiv 2601.05242).

    In a plain sum, a correct answer in a wrong format and a wrong answer in a correct format look alike.

    Attributes:
        eps: added to the standard deviations of each term's groups and of the batch.
    """

    eps: float = 1e-4

    def __call__(self, rewards: RewardTable, correct: Bool[Tensor, " rows"], group_size: int) -> Rows:
        group = GroupRelative("std", self.eps)
        terms = (rewards.weights[name] * group.relative(r, group_size) for name, r in rewards.terms.items())
        advantages = sum(terms)
        return advantages / (advantages.std() + self.eps)


@dataclass(frozen=True)
class Asymmetric:
    """Weight easy questions first and hard ones later, and hold back correct answers early (A-GRAE).

    With p the share of correct answers in a group and w that in the whole step, equations 12 and 13 of arXiv
    2602.05548: the advantage A becomes w/2 * A / sqrt(p) + (1 - w)/2 * A / sqrt(1 - p), unless p is 0 or 1;
    positive advantages are then multiplied by min(1, w / alpha).

    Attributes:
        alpha: share of correct answers from which on correct ones count in full; the authors' code has 0.5
            for medical questions and 1 for mathematics.
    """

    base: Advantages
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"method.advantages.alpha is {self.alpha}: it must be above 0 and at most 1")

    def __call__(self, rewards: RewardTable, correct: Bool[Tensor, " rows"], group_size: int) -> Rows:
        advantages = in_groups(self.base(rewards, correct, group_size), group_size)
        rate = in_groups(correct.float(), group_size).mean(dim=1, keepdim=True)  # p
        overall = correct.float().mean()  # w
        hard, easy = advantages / rate.sqrt(), advantages / (1 - rate).sqrt()
        weighted = overall / 2 * hard + (1 - overall) / 2 * easy
        weighted = torch.where(weighted > 0, weighted * (overall / self.alpha).clamp(max=1), weighted)
        return torch.where((rate > 0) & (rate < 1), weighted, advantages).reshape(-1)


def reverse_cumsum(per_token: PerToken) -> PerToken:
    """Sum over each token and all that follow: sum over s >= t."""
    return per_token.flip(1).cumsum(1).flip(1)


def masked_mean_std(
    values: PerToken, mask: Bool[Tensor, "rows tokens"], over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and unbiased standard deviation of the masked tokens; ``over_ranks`` sums a tensor over ranks."""
    values = torch.where(mask, values, 0.0).double()
    count, total = over_ranks(torch.stack([mask.sum().double(), values.sum()]))
    mean = total / count.clamp(min=1)
    squares = over_ranks(torch.where(mask, values - mean, 0.0).square().sum())
    return mean.float(), (squares / (count - 1).clamp(min=1)).sqrt().float()
