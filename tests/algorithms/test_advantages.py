"""Advantages: worked out on paper, and against each other."""

import math

import pytest
import torch
from formulas import close

from medvlm_r1.algorithms.advantages import (
    Asymmetric,
    GroupRelative,
    LeaveOneOut,
    NoBaseline,
    PerTerm,
    masked_mean_std,
    reverse_cumsum,
)
from medvlm_r1.rewards import RewardTable


def advantages(how, rewards, group_size, right=None):
    """Of one reward term."""
    rewards = torch.as_tensor(rewards)
    right = rewards > 0 if right is None else torch.tensor(right)
    return how(RewardTable({"reward": rewards}, {"reward": 1.0}), right, group_size)


class TestGroupRelative:
    def test_standardises_each_group_with_the_unbiased_deviation(self):
        # 1 1 1 5: mean 2, deviations -1 -1 -1 3, variance (1 + 1 + 1 + 9) / (4 - 1) = 4, std 2
        # 0 3 6 3: mean 3, deviations -3 0 3 0, variance 18 / 3 = 6
        rewards = [1.0, 1, 1, 5, 0, 3, 6, 3]
        s = 3 / math.sqrt(6)
        close(advantages(GroupRelative(eps=0), rewards, 4), [-0.5, -0.5, -0.5, 1.5, -s, 0, s, 0])

    def test_eps_is_added_to_the_deviation(self):
        # std 2 + eps 0.5: -1 / 2.5, 3 / 2.5
        close(advantages(GroupRelative(eps=0.5), [1.0, 1, 1, 5], 4), [-0.4, -0.4, -0.4, 1.2])

    def test_eps_is_the_papers_by_default(self):
        # 0 2e-4: std = sqrt(2) * 1e-4, A = 1e-4 / (sqrt(2) * 1e-4 + 1e-4) = sqrt(2) - 1
        a = math.sqrt(2) - 1
        rewards = torch.tensor([0.0, 2e-4], dtype=torch.float64)
        close(advantages(GroupRelative(), rewards, 2).float(), [-a, a])

    @pytest.mark.parametrize("reward", [0.0, 0.5, 2.0, 0.7, 2 / 3])
    def test_equal_rewards_give_zero(self, reward):
        """Also where a mean of eight equal numbers is not that number."""
        for how in (
            GroupRelative(),
            GroupRelative("none"),
            LeaveOneOut(),
            PerTerm(),
            Asymmetric(LeaveOneOut()),
        ):
            assert advantages(how, [reward] * 16, 8).tolist() == [0.0] * 16

    def test_without_scale_it_is_the_distance_to_the_mean(self):
        close(advantages(GroupRelative("none"), [1.0, 1, 1, 5], 4), [-1.0, -1, -1, 3])

    def test_groups_are_prompt_major(self):
        # Generation-major reading would mix 0 1 with 10 11 and give advantages of +-5.
        close(advantages(GroupRelative("none"), [0.0, 1, 10, 11], 2), [-0.5, 0.5, -0.5, 0.5])

    @pytest.mark.parametrize("how", [GroupRelative(), LeaveOneOut(), PerTerm(), Asymmetric(LeaveOneOut())])
    @pytest.mark.parametrize(("rows", "group"), [(5, 2), (3, 4), (4, 1)])
    def test_broken_groups_are_refused(self, rows, group, how):
        with pytest.raises(ValueError, match=f"{rows} rows do not form groups of {group}"):
            advantages(how, torch.ones(rows), group)

    def test_unknown_scale_is_refused(self):
        with pytest.raises(ValueError, match="'std' or 'none'"):
            GroupRelative(scale="batch")


class TestLeaveOneOut:
    def test_on_paper(self):
        # 1 1 1 5: the others' means are 7/3, 7/3, 7/3, 1
        close(advantages(LeaveOneOut(), [1.0, 1, 1, 5], 4), [-4 / 3, -4 / 3, -4 / 3, 4])

    def test_is_the_distance_to_the_mean_times_g_over_g_minus_one(self):
        rewards = torch.rand(12, generator=torch.Generator().manual_seed(0))
        close(advantages(LeaveOneOut(), rewards, 4), advantages(GroupRelative("none"), rewards, 4) * 4 / 3)


class TestPerTerm:
    def test_on_paper(self):
        # format 0 0 1 1: std sqrt(1/3), normalised -+ sqrt(3)/2; accuracy 0 0 0 1: mean 1/4, std 1/2,
        # normalised -1/2 -1/2 -1/2 3/2. With weights 1 and 2: -h-1, -h-1, h-1, h+3 with h = sqrt(3)/2;
        # their squares add up to 4 h^2 + 8 h + 12 = 15 + 4 sqrt(3), variance that over 3
        h = math.sqrt(3) / 2
        std = math.sqrt((15 + 4 * math.sqrt(3)) / 3)
        table = RewardTable(
            {"format": torch.tensor([0.0, 0, 1, 1]), "accuracy": torch.tensor([0.0, 0, 0, 1])},
            {"format": 1.0, "accuracy": 2.0},
        )
        expected = [(-h - 1) / std, (-h - 1) / std, (h - 1) / std, (h + 3) / std]
        close(PerTerm(eps=1e-9)(table, torch.zeros(4, dtype=torch.bool), 4), expected)

    def test_tells_apart_what_the_sum_hides(self):
        # GDPO's own example: totals 0 1 and 0 2 look alike once each group is standardised
        first = {"a": torch.tensor([0.0, 1, 0, 1]), "b": torch.tensor([0.0, 0, 0, 1])}
        table = RewardTable(first, {"a": 1.0, "b": 1.0})
        right = torch.zeros(4, dtype=torch.bool)
        summed = GroupRelative(eps=1e-9)(table, right, 2)
        apart = PerTerm(eps=1e-9)(table, right, 2)
        close(summed[1], summed[3])
        assert apart[3] > 1.9 * apart[1]


class TestAsymmetric:
    def test_on_paper(self):
        # Two groups of four with 1 and 4 right: w = 5/8. First, std 1/2: A = -1/2 x3, 3/2; p = 1/4, so the
        # factor is 5/16 / sqrt(1/4) + 3/16 / sqrt(3/4) = 5/8 + sqrt(3)/8. Positive ones times w / alpha.
        factor = 5 / 8 + math.sqrt(3) / 8
        got = advantages(Asymmetric(GroupRelative(eps=1e-9), alpha=1.0), [1.0, 0, 0, 0, 1, 1, 1, 1], 4)
        close(got, [1.5 * factor * 5 / 8, *[-0.5 * factor] * 3, 0, 0, 0, 0])
        got = advantages(Asymmetric(GroupRelative(eps=1e-9), alpha=0.5), [1.0, 0, 0, 0, 1, 1, 1, 1], 4)
        close(got[0], 1.5 * factor)

    def test_moves_from_easy_to_hard_questions(self):
        # p = 1/4 and 3/4, alone in a step of bad and of good answers
        def weight(p, others):
            rewards = [1.0] * p + [0.0] * (4 - p) + [others] * 40
            plain = advantages(GroupRelative("none"), rewards, 4)[:4]
            shifted = advantages(Asymmetric(GroupRelative("none"), alpha=1.0), rewards, 4)[:4]
            return (shifted[-1] / plain[-1]).item()  # of wrong answers, which nothing holds back

        assert weight(3, 0.0) > weight(1, 0.0)  # unskilled: the easy question counts more
        assert weight(3, 1.0) < weight(1, 1.0)

    def test_groups_that_are_all_right_or_all_wrong_keep_their_advantage(self):
        # a format reward sets them apart though all answers are right
        rewards, right = [2.0, 1, 2, 1], [True] * 4
        close(advantages(Asymmetric(GroupRelative("none")), rewards, 4, right), [0.5, -0.5, 0.5, -0.5])

    @pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5])
    def test_alpha_out_of_range_is_refused(self, alpha):
        with pytest.raises(ValueError, match="alpha"):
            Asymmetric(GroupRelative(), alpha=alpha)


class TestTokens:
    def test_what_is_still_to_come(self):
        close(reverse_cumsum(torch.tensor([[1.0, 2, 3], [0.0, 0, 5]])), [[6.0, 5, 3], [5.0, 5, 5]])

    def test_mean_and_deviation_of_masked_tokens(self):
        # 1 2 3 6: mean 3, deviations -2 -1 0 3, variance 14 / 3
        values, mask = (
            torch.tensor([[1.0, 2, 99], [3, 6, math.nan]]),
            torch.tensor([[1, 1, 0], [1, 1, 0]]) > 0,
        )
        mean, std = masked_mean_std(values, mask)
        close(mean, 3.0)
        close(std, math.sqrt(14 / 3))

    def test_mean_and_deviation_over_ranks_are_those_of_all(self):
        values, mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(4, 6) > 0
        mask[:, 4:] = False
        whole = masked_mean_std(values, mask)
        rest = values[2:, :4].double()  # the other rank's
        theirs = iter(
            [torch.tensor([rest.numel(), rest.sum()]).double(), (rest - whole[0].double()).square().sum()]
        )
        got = masked_mean_std(values[:2], mask[:2], lambda mine: mine + next(theirs))
        close(got[0], whole[0])
        close(got[1], whole[1])

    def test_no_baseline_is_the_reward(self):
        close(advantages(NoBaseline(), [1.0, 0, 2, 0], 2), [1.0, 0, 2, 0])
