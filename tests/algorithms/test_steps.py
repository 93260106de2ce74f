"""Steps and updates: schedule, limits and names of files agree where a step has several updates."""

import math

import pytest
from command import run_here
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from training import fit

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.algorithms.steps import run_length, total_steps
from medvlm_r1.callbacks.checkpoint import Checkpoints, newest_intact
from medvlm_r1.callbacks.progress import Progress
from medvlm_r1.callbacks.rollout_logger import RolloutLogger


class Killed(BaseException):
    """Simulates the end of a process."""


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self):
        self.lr = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.lr.append(float(trainer.callback_metrics["train/lr"]))


def train(folder, *callbacks, kind=GRPO, n=20, updates=-1, ckpt_path=None, more=None, **settings):
    """Train on ``n`` questions, four a step, for at most two epochs or so many updates."""
    rates = Rates()
    trainer = {"callbacks": [rates, *callbacks], "max_epochs": 2, "limit_val_batches": 0}
    trainer |= {"limit_test_batches": 0, **(more or {})}
    if kind is GRPO:
        settings = {"micro_batch": 1, "num_minibatches": 2, "beta": 0.0, **settings}
    module = fit(kind, folder, steps=updates, n=n, trainer=trainer, ckpt_path=ckpt_path, **settings)
    return module, rates.lr


@pytest.mark.parametrize(
    ("kind", "updates", "more", "settings", "steps"),
    [
        (GRPO, 14, {}, {}, 7),  # 10 steps of 2 updates in the epochs
        (GRPO, 13, {}, {}, 7),  # the last step is taken whole
        (GRPO, 40, {}, {}, 10),
        (GRPO, 8, {"max_epochs": -1}, {"num_iterations": 2}, 2),
        (GRPO, 6, {"limit_train_batches": 2}, {}, 3),
        (GRPO, 20, {"limit_train_batches": 2}, {}, 4),
        (SFT, 7, {}, {}, 7),
        (SFT, -1, {"limit_train_batches": 0.5}, {}, 4),
        (SFT, -1, {"max_epochs": 1}, {}, 5),
    ],
)
def test_the_schedule_ends_where_the_run_ends(kind, updates, more, settings, steps, tmp_path):
    module, lr = train(tmp_path, kind=kind, updates=updates, more=more, **settings)
    assert module.step == module.total_steps == steps
    assert module.trainer.global_step == steps * module.updates_per_step
    assert lr == pytest.approx([1e-3 * (steps - step) / steps for step in range(steps)])
    config = {"method": settings, "trainer": {"max_epochs": 2, "max_steps": updates} | more}
    if kind is GRPO:
        config["method"] = {"num_minibatches": 2} | settings
    assert run_length(config, 20, 4).total == steps


def test_a_resumed_run_keeps_the_schedule(tmp_path):
    _, whole = train(tmp_path / "whole", n=12, updates=9)
    assert len(whole) == 5

    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if module.step == 4:
                raise Killed

    with pytest.raises(Killed):
        train(tmp_path, Checkpoints(tmp_path / "checkpoints", 1), Stop(), n=12, updates=9)
    newest = newest_intact(tmp_path / "checkpoints")
    module, rest = train(tmp_path, Checkpoints(tmp_path / "checkpoints"), n=12, updates=9, ckpt_path=newest)
    assert module.total_steps == 5
    assert rest == pytest.approx(whole[3:])


def test_images_of_the_last_step_are_kept(tmp_path):
    train(tmp_path, RolloutLogger(show_every=0, images_every=0, images_per_step=1), updates=6)
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_a_checkpoints_name_counts_steps(tmp_path):
    callback = ModelCheckpoint(tmp_path, filename="{step}", monitor="train/lr", mode="min")
    train(tmp_path, callback, updates=6, more={"enable_checkpointing": True})
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=3.ckpt"]


def test_a_limit_is_rounded_up_to_whole_steps():
    assert total_steps(5, 2, -1, 3) == 10
    assert [total_steps(5, 2, updates, 3) for updates in (0, 1, 3, 4, 29, 30, 31, 99)] == [
        *(0, 1, 1, 2),
        *(10, 10, 10, 10),
    ]
    assert total_steps(5, -1, 99, 2) == total_steps(5, None, 99, 2) == math.ceil(99 / 2)


def test_a_plan_counts_steps(tmp_path):
    small = ["model=tiny", "data=phantom", "data.train.n=20", "model.recipe.prompts_per_step=4"]
    two = ["model.recipe.micro_batch=1", "model.recipe.epochs=2", "method.num_minibatches=2"]
    printed = run_here(tmp_path, *small, *two, "trainer.max_steps=14", "plan=true").stdout
    assert "7 steps of 2 updates" in printed


def test_the_bar_ends_where_the_run_ends(tmp_path):
    totals = []

    class Bar(Progress):
        def on_train_epoch_start(self, trainer, module):
            totals.append(self.total_train_batches)
            super().on_train_epoch_start(trainer, module)

    train(tmp_path, Bar(), updates=13, more={"enable_progress_bar": True})
    assert totals == [5, 2]
