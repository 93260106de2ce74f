"""The loss: worked out on paper, and against each other."""

import math

import pytest
import torch
from formulas import close, grpo_loss, random_rows

from medvlm_r1.algorithms.base import rows_of
from medvlm_r1.algorithms.losses import importance_ratio, kl_k3, sft_loss
from medvlm_r1.algorithms.optim import OptimizerSettings

LN2 = math.log(2.0)


def one_token(ratio, advantage, **how):
    """Loss and gradient of a single token whose ratio to the sampling policy is ``ratio``."""
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.tensor([[True]])
    how = {"beta": 0.0} | how
    loss, stats = grpo_loss(logprobs, torch.zeros(1, 1), None, torch.tensor([advantage]), mask, **how)
    loss.backward()
    return loss.item(), logprobs.grad.item(), stats


# What sets a method's loss apart from GRPO's.
VARIANTS = {
    "gspo": {"importance_sampling_level": "sequence"},
    "rloo": {"importance_sampling_level": "completion"},
    "cispo": {"policy_loss": "weighted"},
}


class TestKL:
    def test_on_paper(self):
        # policy 1/2, reference 1/4: d = -ln 2, 1/2 + ln 2 - 1 = 0.193147
        # policy 1/2, reference 1:   d = +ln 2, 2 - ln 2 - 1 = 0.306853
        # equal: 0
        policy, reference = torch.tensor([[-LN2, -LN2, -3.0]]), torch.tensor([[-2 * LN2, 0.0, -3.0]])
        close(kl_k3(policy, reference), [[0.193147, 0.306853, 0.0]])

    def test_is_never_negative_and_unbiased(self):
        generator = torch.Generator().manual_seed(0)
        policy = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
        reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
        estimate = kl_k3(policy[None], reference[None])[0]
        assert (estimate >= 0).all()
        exact = (policy.exp() * (policy - reference)).sum()
        close((policy.exp() * estimate).sum(), exact)  # the expectation, not a sample of it

    @pytest.mark.parametrize("distance", [50.0, 500.0, math.inf])
    def test_cannot_overflow(self, distance):
        policy = torch.tensor([[-distance, 0.0]], requires_grad=True)
        loss = kl_k3(policy, torch.tensor([[0.0, -distance]]))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert policy.grad.isfinite().all()

    def test_small_distances_keep_their_digits(self):
        # d = 1e-4: d^2 / 2 = 5e-9, which exp(d) - d - 1 in fp32 rounds to 0 or 1.2e-7
        close(kl_k3(torch.tensor([[-1.0]]), torch.tensor([[-0.9999]])).item(), 5e-9, tolerance=1e-9)


class TestGRPOLoss:
    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss", "gradient", "held"),
        [
            # inside the clip, w = 1.1: loss -w A, d loss / d log p = -w A
            (1.1, 1.0, -1.1, -1.1, 0),
            (1.1, -1.0, 1.1, 1.1, 0),
            # above it, w = 1.5: min(1.5, 1.2) is held at the clip, min(-1.5, -1.2) is not
            (1.5, 1.0, -1.2, 0.0, 1),
            (1.5, -1.0, 1.5, 1.5, 0),
            # below it, w = 0.5: min(0.5, 0.8) is not held, min(-0.5, -0.8) is
            (0.5, 1.0, -0.5, -0.5, 0),
            (0.5, -1.0, 0.8, 0.0, 1),
            # twice the advantage, on policy
            (1.0, 2.0, -2.0, -2.0, 0),
        ],
    )
    def test_one_token_on_paper(self, ratio, advantage, loss, gradient, held):
        got, slope, stats = one_token(ratio, advantage)
        close(got, loss)
        close(slope, gradient)
        assert stats["clipped"] == held

    def test_the_two_clips_are_apart(self):
        close(one_token(1.5, 1.0, clip_low=0.2, clip_high=0.28)[0], -1.28)
        close(one_token(0.5, -1.0, clip_low=0.3, clip_high=0.28)[0], 0.7)

    def test_beta_weighs_the_kl(self):
        # on policy at 1/2, reference 1/4: -A + beta * 0.193147 = -1 + 0.0193147
        # gradient: -A + beta * (1 - exp(d)) = -1 + 0.1 * (1 - 1/2)
        logprobs = torch.tensor([[-LN2]], requires_grad=True)
        reference, mask = torch.tensor([[-2 * LN2]]), torch.tensor([[True]])
        loss, stats = grpo_loss(logprobs, logprobs.detach(), reference, torch.ones(1), mask, beta=0.1)
        loss.backward()
        close(loss.item(), -0.9806853)
        close(logprobs.grad.item(), -0.95)
        close(stats["kl"].item(), 0.193147)

    def test_sequence_and_token_means_on_paper(self):
        # On policy, A = (1, -2); the first row has 3 tokens, the second 1.
        # sequence: (-1 + 2) / 2 = 0.5; token: (3 * -1 + 1 * 2) / 4 = -0.25
        logprobs, advantages = torch.zeros(2, 3), torch.tensor([1.0, -2.0])
        mask = torch.tensor([[True, True, True], [True, False, False]])
        for loss_type, expected in (("sequence", 0.5), ("token", -0.25)):
            loss, _ = grpo_loss(logprobs, logprobs, None, advantages, mask, beta=0, loss_type=loss_type)
            close(loss.item(), expected)

    def test_an_empty_row_counts_as_zero(self):
        # A = (1, 5); the second row has no token: (-1 + 0) / 2 over rows, -2 / 2 over tokens
        logprobs = torch.zeros(2, 2, requires_grad=True)
        mask = torch.tensor([[True, True], [False, False]])
        for loss_type, expected in (("sequence", -0.5), ("token", -1.0)):
            loss, stats = grpo_loss(
                logprobs, torch.zeros(2, 2), None, torch.tensor([1.0, 5.0]), mask, beta=0, loss_type=loss_type
            )
            close(loss.item(), expected)
            assert stats["tokens"] == 2
        loss.backward()
        assert logprobs.grad[1].tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("loss_type", ["sequence", "token"])
    def test_nothing_but_empty_rows_is_zero(self, loss_type):
        logprobs = torch.zeros(2, 2, requires_grad=True)
        mask = torch.zeros(2, 2, dtype=torch.bool)
        ones, how = torch.ones(2), {"beta": 0, "loss_type": loss_type}
        loss, _ = grpo_loss(logprobs, logprobs.detach(), None, ones, mask, **how)
        loss.backward()
        assert loss.item() == 0.0
        assert logprobs.grad.abs().sum() == 0.0

    @pytest.mark.parametrize("how", [{}, *VARIANTS.values()], ids=["grpo", *VARIANTS])
    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
    def test_rubbish_outside_the_mask_reaches_neither_loss_nor_gradient(self, rubbish, how):
        mask = torch.tensor([[True, False]])
        results = []
        for outside in (0.0, rubbish):
            logprobs = torch.tensor([[-1.0, outside]], requires_grad=True)
            old, reference = torch.tensor([[-1.1, outside]]), torch.tensor([[-0.8, outside]])
            loss, stats = grpo_loss(logprobs, old, reference, torch.tensor([0.7]), mask, **how)
            loss.backward()
            results.append((loss.item(), logprobs.grad.tolist(), [s.item() for s in stats.values()]))
        assert results[0] == results[1]

    def test_a_ratio_beyond_reason_stays_finite(self):
        logprobs = torch.tensor([[0.0, -400.0]], requires_grad=True)
        old, reference = torch.tensor([[-400.0, 0.0]]), torch.tensor([[-500.0, 0.0]])
        for advantage in (1.0, -1.0):
            mask = torch.ones(1, 2, dtype=torch.bool)
            loss, stats = grpo_loss(logprobs, old, reference, torch.tensor([advantage]), mask)
            loss.backward()
            assert loss.isfinite()
            assert logprobs.grad.isfinite().all()
            assert all(torch.as_tensor(s).isfinite() for s in stats.values())

    @pytest.mark.parametrize(
        ("loss_type", "how"),
        [
            (loss_type, how)
            for loss_type in ("sequence", "token")
            for how in ({}, *VARIANTS.values())
            if loss_type == "sequence" or how != VARIANTS["rloo"]
        ],
    )
    def test_micro_batches_add_up_to_the_whole(self, loss_type, how):
        logprobs, old, reference, advantages, mask = random_rows(10, 7)
        whole, stats = grpo_loss(logprobs, old, reference, advantages, mask, loss_type=loss_type, **how)
        whole_gradient = torch.autograd.grad(whole, logprobs)[0]
        denominator = 10 if loss_type == "sequence" else mask.sum()
        parts, counts = [], []
        for rows in (slice(0, 1), slice(1, 6), slice(6, 10)):
            given = [t[rows] for t in (logprobs, old, reference, advantages, mask)]
            loss, part = grpo_loss(*given, loss_type=loss_type, denominator=denominator, **how)
            parts.append(loss)
            counts.append(part)
        close(sum(parts), whole, 1e-12)
        close(torch.autograd.grad(sum(parts), logprobs)[0], whole_gradient, 1e-12)
        for name in stats:
            close(sum(part[name] for part in counts), stats[name], 1e-12)

    def test_kl_needs_a_reference(self):
        zeros, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"beta is 0\.04"):
            grpo_loss(zeros, zeros, None, torch.ones(1), mask)

    @pytest.mark.parametrize(
        "wrong", [{"loss_type": "batch"}, {"importance_sampling_level": "word"}, {"policy_loss": "none"}]
    )
    def test_unknown_choices_are_refused(self, wrong):
        zeros, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*: use '"):
            grpo_loss(zeros, zeros, None, torch.ones(1), mask, beta=0, **wrong)

    def test_an_advantage_for_each_token(self):
        # on policy: -(1 - 2 + 3) / 3 and gradient -A / 3; the same for a row where all three are 2
        logprobs, mask = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, dtype=torch.bool)
        advantages = torch.tensor([[1.0, -2.0, 3.0], [2.0, 2.0, 2.0]])
        loss, _ = grpo_loss(logprobs, logprobs.detach(), None, advantages, mask, beta=0)
        loss.backward()
        close(loss.item(), -(2 / 3 + 2) / 2)
        close(logprobs.grad, -advantages / 6)


class TestImportance:
    def test_levels_on_paper(self):
        # ratios 2 and 8 over two tokens: geometric mean 4, product 16; the third token is padding
        log_ratio = torch.tensor([[math.log(2), math.log(8), 5.0]])
        mask = torch.tensor([[True, True, False]])
        for level, expected in (
            ("token", [2.0, 8.0]),
            ("sequence", [4.0, 4.0]),
            ("completion", [16.0, 16.0]),
        ):
            close(importance_ratio(log_ratio, mask, level)[0, :2], expected, 1e-5)

    def test_one_update_on_policy_is_the_same_under_every_ratio(self):
        logprobs, _, _, advantages, mask = random_rows(6, 5)
        gradients = []
        for level in ("token", "sequence"):
            loss, _ = grpo_loss(
                logprobs, logprobs.detach(), None, advantages, mask, beta=0, importance_sampling_level=level
            )
            gradients.append(torch.autograd.grad(loss, logprobs)[0])
        # one action: a completion's gradient is its sum over tokens, not its mean
        loss, _ = grpo_loss(
            logprobs,
            logprobs.detach(),
            None,
            advantages,
            mask,
            beta=0,
            importance_sampling_level="completion",
        )
        gradients.append(torch.autograd.grad(loss, logprobs)[0] / mask.sum(1, keepdim=True))
        close(gradients[1], gradients[0], 1e-12)
        close(gradients[2], gradients[0], 1e-12)

    def test_weighted_tokens_keep_their_gradient_above_the_clip(self):
        # w = 3, bound 1.5: loss -1.5 A log pi = -1.5 ln 3, gradient -1.5; clipped, it would be 0
        got, slope, stats = one_token(3.0, 1.0, policy_loss="weighted", clip_high=0.5)
        close(got, -1.5 * math.log(3))
        close(slope, -1.5)
        assert stats["clipped"] == 1
        # no lower bound: w = 0.5, A = -1
        close(one_token(0.5, -1.0, policy_loss="weighted", clip_high=0.5)[1], 0.5)

    def test_weighted_and_clipped_are_one_on_policy(self):
        logprobs, _, _, advantages, mask = random_rows(6, 5)
        gradients = [
            torch.autograd.grad(
                grpo_loss(
                    logprobs,
                    logprobs.detach(),
                    None,
                    advantages,
                    mask,
                    beta=0,
                    loss_type="token",
                    policy_loss=s,
                )[0],
                logprobs,
            )[0]
            for s in ("clipped", "weighted")
        ]
        close(gradients[0], gradients[1], 1e-12)


class TestSFTLoss:
    def test_is_the_mean_over_target_tokens(self):
        # (1 + 2 + 4) / 3; the -9 stands outside the mask
        logprobs = torch.tensor([[-1.0, -2.0], [-4.0, -9.0]])
        mask = torch.tensor([[True, True], [True, False]])
        close(sft_loss(logprobs, mask).item(), 7 / 3)
        close(sft_loss(logprobs, mask, denominator=14).item(), 0.5)

    def test_agrees_with_cross_entropy(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(6, 11, generator=generator, dtype=torch.float64)
        targets = torch.tensor([1, 2, -100, 3, -100, 0])
        kept = targets >= 0
        logprobs = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[:, None]).T
        close(sft_loss(logprobs, kept[None]), torch.nn.functional.cross_entropy(logits, targets), 1e-12)

    def test_rubbish_outside_the_mask_reaches_neither_loss_nor_gradient(self):
        logprobs = torch.tensor([[-1.0, math.nan, -math.inf]], requires_grad=True)
        loss = sft_loss(logprobs, torch.tensor([[True, False, False]]))
        loss.backward()
        assert loss.item() == 1.0
        assert logprobs.grad.tolist() == [[-1.0, 0.0, 0.0]]

    def test_no_target_is_zero(self):
        assert sft_loss(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)).item() == 0.0


class TestOptimisation:
    def factors(self, schedule, warmup, total=4):
        optim = OptimizerSettings(lr=1.0, optimizer=torch.optim.SGD, schedule=schedule, warmup_steps=warmup)
        return [optim.lr_at(step, total) for step in range(total + 2)]

    def test_linear_on_paper(self):
        # 4 steps: 4/4, 3/4, 2/4, 1/4, and nothing beyond
        close(self.factors("linear", 0), [1, 0.75, 0.5, 0.25, 0, 0])

    def test_cosine_on_paper(self):
        # (1 + cos(pi * step / 4)) / 2, cos 45 degrees = 0.7071068
        close(self.factors("cosine", 0), [1, 0.8535534, 0.5, 0.1464466, 0, 0])

    def test_constant_stays(self):
        assert self.factors("constant", 0) == [1.0] * 6

    def test_warmup_rises_to_the_peak_and_decays_over_the_rest(self):
        # two steps up: 1/3, 2/3; then 4 - 2 = 2 steps down: 1, 1/2, 0
        close(self.factors("linear", 2), [1 / 3, 2 / 3, 1, 0.5, 0, 0])
        close(self.factors("constant", 2), [1 / 3, 2 / 3, 1, 1, 1, 1])

    def test_warmup_as_long_as_the_run_never_divides_by_zero(self):
        close(self.factors("linear", 4), [0.2, 0.4, 0.6, 0.8, 1.0, 0.0])

    @pytest.mark.parametrize(
        "wrong", [{"lr": 0.0}, {"warmup_steps": -1}, {"max_grad_norm": -1.0}, {"schedule": "step"}]
    )
    def test_wrong_values_are_refused(self, wrong):
        with pytest.raises(ValueError, match="optim"):
            OptimizerSettings(**{"lr": 1e-6, "optimizer": torch.optim.SGD} | wrong)


def test_rows_repeat_each_prompt():
    assert rows_of("ab", 3) == ["a", "a", "a", "b", "b", "b"]
