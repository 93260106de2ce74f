"""Training on the fast path against the reference path, on the reference engine's tokens."""

import pytest
import torch
from training import FORMAT, fit, sgd

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

HOW = {"lr": 0.05, "optimizer": sgd, "rewards": FORMAT, "micro_batch": 2, "n": 80}


class Recorded(GRPO):
    """GRPO that records the loss of each update."""

    def on_fit_start(self):
        super().on_fit_start()
        self.losses, self.norms, self.differences = [], [], []

    def update_minibatch(self, minibatch):
        update = super().update_minibatch(minibatch)
        self.losses.append(float(update["loss"]))
        self.norms.append(float(update["grad_norm"]))
        self.differences.append(float(update["sampling_logp_difference"].max()))
        return update


class Recording:
    """The reference engine; records its rollouts of training."""

    def __init__(self):
        self.rollouts = {}

    def __call__(self, policy, prompts, sampling, key):
        rollout = ReferenceEngine()(policy, prompts, sampling, key)
        if sampling.temperature:
            self.rollouts[key.step] = rollout
        return rollout


class Replaying:
    """Returns recorded rollouts; the fast engine samples too, for a comparison of the first step."""

    def __init__(self, rollouts):
        self.rollouts, self.first = rollouts, None

    def __call__(self, policy, prompts, sampling, key):
        rollout = SharedPrefixEngine()(policy, prompts, sampling, key)
        if not sampling.temperature:
            return rollout
        self.first = self.first or rollout
        return self.rollouts[key.step]


@pytest.mark.parametrize(("beta", "steps"), [(0.0, 8), (0.04, 20)])
def test_steps_give_the_same_losses_and_weights(beta, steps, tmp_path):
    sampling = Sampling(group_size=4, max_tokens=24)
    slow = Recording()
    reference = fit(
        Recorded, tmp_path / "a", steps, engine=slow, layout="repeated", beta=beta, sampling=sampling, **HOW
    )
    fast = Replaying(slow.rollouts)
    ours = fit(Recorded, tmp_path / "b", steps, engine=fast, beta=beta, sampling=sampling, **HOW)

    assert torch.equal(fast.first.tokens, slow.rollouts[0].tokens)
    assert fast.first.texts == slow.rollouts[0].texts
    assert len(reference.losses) == len(ours.losses) == steps
    # on the policy that sampled, advantages cancel in the loss itself, not in its gradient
    assert not beta or max(map(abs, reference.losses)) > 1e-3
    assert max(reference.norms) > 0.1
    assert ours.norms == pytest.approx(reference.norms, rel=1e-3, abs=1e-4)
    assert ours.losses == pytest.approx(reference.losses, abs=1e-5)
    start = fit(Recorded, tmp_path / "c", 0, sampling=sampling, **HOW)
    moved = 0.0
    for (name, one), other, before in zip(
        ours.policy.named_parameters(), reference.policy.parameters(), start.policy.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
        moved = max(moved, (one - before).abs().max().item())
    assert moved > 1e-2
    # without a KL term, zero-advantage groups are skipped, which changes nothing
    assert beta or ours.totals["forward_tokens"] < reference.totals["forward_tokens"] / 2
    assert max(ours.differences) < 1e-3


def test_what_a_run_computes_is_counted(tmp_path):
    module = fit(GRPO, tmp_path, steps=2, tuning=Tuning(train="language_model"), beta=0.04)
    totals = module.totals
    # 8 training questions in 2 steps, 8 validation questions twice, 14 test questions; the images of
    # validation are cached the second time
    assert totals["images_encoded"] == 8 + 8 + 14
    assert totals["forward_tokens"] > 0
    assert totals["lm_head_tokens"] > 0
    assert totals["decode_rows"] > 0
    assert all(totals[f"seconds_{phase}"] > 0 for phase in ("sample", "reference", "train", "update"))
    assert module.computed == totals


def test_importance_weights_are_capped_and_leave_the_kl_term():
    generator = torch.Generator().manual_seed(0)
    logprobs, old, sampled, reference = (-torch.rand(3, 5, generator=generator) * 3 for _ in range(4))
    mask = torch.ones(3, 5, dtype=torch.bool)
    gain = torch.tensor([1.0, -0.5, 0.3])
    weights = (old - sampled).exp().clamp(max=1.5)
    loss, _ = PolicyLoss(tis_cap=1.5)(
        logprobs, old, reference, gain, mask, beta=0.1, sampling_logprobs=sampled
    )
    ratio = (logprobs - old).exp()
    d = reference - logprobs
    term = -torch.min(ratio * gain[:, None], ratio.clamp(0.8, 1.2) * gain[:, None]) * weights
    expected = (term + 0.1 * (d.exp() - d - 1)).mean(1).mean()
    assert (weights == 1.5).any()
    assert (weights < 1.5).any()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValueError, match=r"tis_cap is 0\.5: it must be at least 1, or null"):
        PolicyLoss(tis_cap=0.5)
