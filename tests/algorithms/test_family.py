"""The GRPO family in training: every member learns, ranks and micro-batches change nothing, options do what
they say."""

import pytest
import torch
from command import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback
from training import FORMAT, RECIPE, fit, module_of, sgd
from trl.rewards import get_soft_overlong_punishment

from medvlm_r1.algorithms.advantages import GroupRelative, LeaveOneOut, NoBaseline
from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.callbacks.rollout_rows import rollout_rows
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.rewards import RewardTable
from medvlm_r1.rollout.engine import Rollout, Sampling

FAMILY = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "gdpo", "a_grae")


def settings_of(method, *overrides):
    """What an option of the method group gives GRPO, at the sizes of these tests."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(
            "config", overrides=[f"method={method}", "model.recipe.max_completion_tokens=24", *overrides]
        )
    settings = instantiate(cfg.method).keywords
    for key in ("optim", "max_completion_tokens"):
        del settings[key]
    return settings | {"sampling": Sampling(group_size=4, max_tokens=24), "micro_batch": 4}


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


class Steps(Callback):
    """Keeps the rows and the logged values of every training step."""

    def __init__(self):
        self.rows, self.logged = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append(rollout_rows(module.step - 1, outputs["trajectory"]))
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def steps_of(folder, **settings):
    """One step by plain SGD; returns the change of the weights and what the step left."""
    start = weights(module_of(VLMModule, load_policy("embedded", RECIPE)))
    seen = Steps()
    settings = {"steps": 1, "optimizer": sgd, "lr": 0.1, "trainer": {"callbacks": [seen]}} | settings
    return weights(fit(GRPO, folder, **settings)) - start, seen


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return fit(GRPO, tmp_path_factory.mktemp("untrained"), steps=1, lr=1e-9)


@pytest.mark.parametrize("method", FAMILY)
def test_every_member_raises_what_it_rewards(method, untrained, tmp_path):
    """Rewarding the think format alone must make completions think."""
    after = fit(GRPO, tmp_path, steps=12, n=48, lr=3e-4, rewards=FORMAT, **settings_of(method))
    thinks = [sum(p.well_formed for p in m.predictions) for m in (untrained, after)]
    assert after.method == method
    assert thinks[1] > thinks[0]
    assert thinks[1] > 0.8 * len(after.predictions)


@pytest.mark.parametrize("method", ["rloo", "reinforce_pp", "gdpo"])
def test_micro_batches_change_memory_and_not_the_update(method, tmp_path):
    settings = settings_of(method) | {"num_iterations": 2}
    whole, _ = steps_of(tmp_path / "a", **settings)
    parts, _ = steps_of(tmp_path / "b", **settings | {"micro_batch": 1})
    assert whole.norm() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_one_update_of_gspo_and_cispo_is_grpos(tmp_path):
    """On policy all ratios are 1, so only the mean over tokens sets CISPO apart."""
    grpo, _ = steps_of(tmp_path / "grpo", beta=0.0)
    gspo, _ = steps_of(tmp_path / "gspo", **settings_of("gspo"))
    torch.testing.assert_close(gspo, grpo, rtol=1e-3, atol=1e-6)
    by_token, _ = steps_of(tmp_path / "token", beta=0.0, loss=PolicyLoss(loss_type="token"))
    cispo, _ = steps_of(tmp_path / "cispo", **settings_of("cispo"))
    torch.testing.assert_close(cispo, by_token, rtol=1e-3, atol=1e-6)
    assert (grpo - by_token).norm() > 1e-3 * grpo.norm()


def test_rloo_without_kl_is_dr_grpo_up_to_the_lengths(tmp_path):
    """A completion as one action is the sum over its tokens, which the limit divides: G / (G - 1) * limit."""
    dr_grpo, its = steps_of(tmp_path / "a", **settings_of("dr_grpo"))
    rloo, other = steps_of(tmp_path / "b", **settings_of("rloo") | {"beta": 0.0})
    norms = [seen.logged[0]["train/grad_norm"] for seen in (its, other)]  # before they are clipped
    assert norms[1] == pytest.approx(norms[0] * 24 * 4 / 3, rel=1e-3)
    assert torch.cosine_similarity(rloo, dr_grpo, dim=0) > 0.9999


def test_kl_in_the_reward_is_taken_off_before_the_baseline(tmp_path):
    """After an update the policy has left the reference, so the second step's totals are not all."""
    _, seen = steps_of(
        tmp_path,
        steps=2,
        beta=0.5,
        kl_placement="reward",
        loss=PolicyLoss(importance_sampling_level="completion"),
        advantages=LeaveOneOut(),
    )
    apart = []  # how far the advantages are from those of the rewards alone
    for rows in seen.rows:
        totals = torch.tensor([row["total"] for row in rows]).view(-1, 4)
        plain = (totals - totals.mean(1, keepdim=True)) * 4 / 3
        apart.append((torch.tensor([row["advantage"] for row in rows]).view(-1, 4) - plain).abs().max())
    assert apart[0] < 1e-4
    assert apart[1] > 1e-3


def test_advantages_by_token(monkeypatch):
    """Worked out on paper: 1 and -1 less 0.5 times the k1 still to come, then normalised."""
    policy = load_policy("embedded", RECIPE)
    old, reference = torch.zeros(2, 3), torch.tensor([[-1.0, -2.0, 0.0], [-4.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rollout = Rollout(mask.long(), mask, old, old, old, ["", ""], torch.tensor([False, False]))
    trajectory = Trajectory([], rollout, [], [], RewardTable({}, {}), old, reference)
    monkeypatch.setattr(GRPO, "_compute_advantages", lambda *_: torch.tensor([1.0, -1.0]))
    # k1 = old - reference: 1 2 0, and 4 with padding behind it; to come: 3 2 0, and 4
    module = module_of(GRPO, policy, beta=0.5, kl_placement="token")
    got = module.assign_advantages(trajectory).advantages
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0.0, 1.0], [-3.0, 0.0, 0.0]]))
    monkeypatch.setattr(GRPO, "_sum_over_ranks", lambda self, values: values)
    module = module_of(GRPO, policy, beta=0.5, kl_placement="token", normalize_advantages=True)
    got = module.assign_advantages(trajectory).advantages
    torch.testing.assert_close(got[mask].mean(), torch.tensor(0.0))
    torch.testing.assert_close(got[mask].std(), torch.tensor(1.0))
    assert got[~mask].tolist() == [0.0, 0.0]


def test_dynamic_sampling_replaces_groups_without_spread(tmp_path):
    settings = {"n": 48, "beta": 0.0, "sampling": Sampling(group_size=4, max_tokens=24, temperature=0.1)}
    plain, before = steps_of(tmp_path / "a", **settings)
    drawn, after = steps_of(tmp_path / "b", dynamic_sampling_rounds=4, **settings)
    (before,), (after,) = before.rows, after.rows

    def groups(rows):
        return [rows[start : start + 4] for start in range(0, len(rows), 4)]

    def spread(group):
        return len({row["total"] for row in group}) > 1

    kept = 0
    for old, new in zip(groups(before), groups(after), strict=True):
        if spread(old):
            assert new == old
            kept += 1
        else:
            assert spread(new) or new == old
            assert len({row["sample_id"] for row in new}) == 1
    assert kept < 4, "these draws no longer test anything: take another seed"
    assert sum(map(spread, groups(after))) > kept
    assert len({row["sample_id"] for row in after}) == 4  # no question twice
    assert not torch.equal(plain, drawn)


def test_dynamic_sampling_ends_where_no_question_is_left(tmp_path):
    _, seen = steps_of(tmp_path, n=4, beta=0.0, dynamic_sampling_rounds=4)
    assert len({row["sample_id"] for row in seen.rows[0]}) == 4


def test_over_long_completions_lose_reward(tmp_path):
    """Limit 12, half of it slope: 0 up to 6 tokens, a half at 9, 1 at the limit. TRL says the same."""
    _, seen = steps_of(tmp_path, overlong_buffer=0.5, sampling=Sampling(group_size=8, max_tokens=12))
    rows = seen.rows[0]
    theirs = get_soft_overlong_punishment(max_completion_len=12, soft_punish_cache=6)
    for row in rows:
        assert row["rewards"]["overlong"] == pytest.approx(-max(0, row["tokens"] - 6) / 6, abs=1e-5)
        assert row["rewards"]["overlong"] == pytest.approx(theirs([[0] * row["tokens"]])[0], abs=1e-5)
    assert len({row["rewards"]["overlong"] for row in rows}) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"dynamic_sampling_rounds": -1},
        {"overlong_buffer": 1.0},
        {"beta": -0.1},
        {"kl_placement": "everywhere"},
        {"kl_placement": "token", "loss": PolicyLoss(importance_sampling_level="sequence")},
        {"advantages": NoBaseline()},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_wrong_choices_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        module_of(GRPO, load_policy("embedded", RECIPE), **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss_type": "rows"},
        {"importance_sampling_level": "word"},
        {"policy_loss": "soft"},
        {"importance_sampling_level": "sequence", "policy_loss": "weighted"},
        {"importance_sampling_level": "sequence", "tis_cap": 2.0},
        {"importance_sampling_level": "completion", "loss_type": "token"},
        {"tis_cap": 0.5},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_wrong_losses_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PolicyLoss(**wrong)


def test_asymmetric_advantages_go_with_every_scale(tmp_path):
    settings = settings_of("dr_grpo", "method/advantages=asymmetric", "method.advantages.base.scale=none")
    assert settings["advantages"].base == GroupRelative("none")
    change, _ = steps_of(tmp_path, **settings)
    assert change.norm() > 0
