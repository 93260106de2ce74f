"""Alarms speak once for each cause, say what to do, and stay on disk."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from large_run import drawn, sample
from torch.utils._python_dispatch import TorchDispatchMode

from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.callbacks.alarms import Alarms, BrokenSamplerError
from medvlm_r1.callbacks.progress import Progress
from medvlm_r1.callbacks.rollout_logger import RolloutLogger
from medvlm_r1.rewards import RewardTable
from medvlm_r1.rollout.engine import Rollout

pytestmark = pytest.mark.usefixtures("unchecked")  # trainers are namespaces

FINE = {
    "train/frac_zero_advantage": 0.5,
    "train/truncated": 0.0,
    "train/kl": 0.01,
    "train/loss": 0.1,
    "train/loss_tokens": 100.0,
    "train/tokens": 12.0,
    "train/sampling_logp_difference_p99": 0.04,
}


def alarms_of(folder, *steps, dtype=torch.bfloat16, **settings):
    """Feed the callback the metrics of consecutive steps; returns what it wrote."""
    alarms = Alarms(**settings)
    policy = SimpleNamespace(sampling_model=SimpleNamespace(dtype=dtype))
    for number, metrics in enumerate(steps):
        trainer = SimpleNamespace(
            callback_metrics={k: torch.tensor(v) for k, v in {**FINE, **metrics}.items()},
            default_root_dir=folder,
            is_global_zero=True,
        )
        module = SimpleNamespace(step=number + 1, policy=policy)
        alarms.on_train_batch_end(trainer, module, None, None, number)
    path = folder / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_healthy_run_is_silent(tmp_path, capsys):
    assert alarms_of(tmp_path, {}, {}, {}) == []
    assert capsys.readouterr().out == ""


def test_zero_advantages_for_n_steps(tmp_path):
    flat = {"train/frac_zero_advantage": 1.0}
    rows = alarms_of(tmp_path, flat, flat, {}, flat, flat, flat, flat, zero_advantage_steps=3)
    assert [(row["step"], row["alarm"]) for row in rows] == [(5, "zero_advantage")]


@pytest.mark.parametrize(
    ("metrics", "alarm", "remedy"),
    [
        ({"train/truncated": 0.6}, "truncated", "max_completion_tokens"),
        ({"train/kl": float("inf")}, "not_finite", "learning rate"),
        ({"train/loss": float("nan")}, "not_finite", "learning rate"),
        ({"train/grad_norm": float("inf")}, "not_finite", "updates are skipped"),
        ({"train/sampling_logp_difference_p99": 0.6}, "sampling_logp_difference", "method.loss.tis_cap=2"),
        ({"train/loss_tokens": 0.0}, "no_loss_tokens", "ended at once"),
        ({"train/tokens": 1.0}, "no_loss_tokens", "ended at once"),
    ],
)
def test_each_cause_is_named_with_its_remedy(tmp_path, capsys, metrics, alarm, remedy):
    (row,) = alarms_of(tmp_path, {}, metrics, metrics)
    assert (row["step"], row["alarm"]) == (1, alarm)
    assert remedy in row["message"]
    assert "ALARM step 1" in capsys.readouterr().out


def test_a_difference_that_is_rounding_in_bf16_is_none_in_fp32(tmp_path):
    """In fp32 the alarm sees an engine with the weights of the step before; a number sets its threshold."""
    rounding, lost = ({"train/sampling_logp_difference_p99": value} for value in (5e-5, 2e-3))
    assert alarms_of(tmp_path, rounding, lost) == []
    (row,) = alarms_of(tmp_path, rounding, lost, dtype=torch.float32)
    assert (row["step"], row["alarm"]) == (1, "sampling_logp_difference")
    assert "differ by 0.002 nats" in row["message"]
    assert "less than 0.001" in row["message"]
    assert len(alarms_of(tmp_path, lost, dtype=torch.float32, sampling_logp_difference=0.1)) == 1


@pytest.mark.parametrize("difference", [2.1, float("nan")])
def test_a_broken_sampler_stops_the_run(tmp_path, difference):
    broken = {"train/sampling_logp_difference_p99": difference}
    with pytest.raises(BrokenSamplerError, match=r"step 1: .* differ by .*: try rollout.record=off"):
        alarms_of(tmp_path, {}, broken)
    (row,) = (json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines())
    assert (row["step"], row["alarm"]) == (1, "sampling_logp_difference")
    assert len(alarms_of(tmp_path, {}, broken, on_sampler_difference="warn")) == 2  # and goes on
    alarms_of(tmp_path, {**broken, "train/loss": float("nan")})  # the trained model's fault


def test_a_cause_that_returns_is_said_again(tmp_path):
    cut = {"train/truncated": 0.9}
    assert [row["step"] for row in alarms_of(tmp_path, cut, {}, cut)] == [0, 2]


def test_the_bar_shows_short_names():
    bar = Progress()
    trainer = SimpleNamespace(
        progress_bar_metrics={"train/reward": 1.0, "validation/accuracy": 0.5}, loggers=[]
    )
    assert bar.get_metrics(trainer, None) == {"reward": 1.0, "val accuracy": 0.5}


class Reads(TorchDispatchMode):
    """Counts reads of a tensor's single value, each of which may wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_rows_of_a_rollout_are_not_read_one_by_one():
    def reads(prompts):
        rng = random.Random(0)
        samples = [sample(rng, "mri", "train", k) for k in range(prompts)]
        with Reads() as counted:
            assert len(drawn(rng, 0, samples, 4)) == prompts * 4
        return counted.count

    assert reads(2) == reads(20)


def test_old_rollouts_make_room(tmp_path):
    none = torch.zeros(0, 1)
    rollout = Rollout(none.long(), none.bool(), none, none, none, [], none[:, 0].bool())
    trajectory = Trajectory([], rollout, [], [], RewardTable({"r": none[:, 0]}, {"r": 1.0}), advantages=none)
    logger = RolloutLogger(keep=3, show_every=0)
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path)
    for step in range(8):
        outputs = {"trajectory": trajectory}
        logger.on_train_batch_end(
            trainer, SimpleNamespace(step=step + 1, total_steps=99), outputs, None, step
        )
    kept = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert kept == ["step-5.jsonl", "step-6.jsonl", "step-7.jsonl"]
    with pytest.raises(ValueError, match=r"callbacks\.rollouts\.keep is 0"):
        RolloutLogger(keep=0)
