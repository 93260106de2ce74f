"""Whole runs on the embedded model: they learn the same thing twice, and write what they promise."""

import csv
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import OmegaConf

from medvlm_r1.data.module import VQADataModule
from medvlm_r1.data.phantom import PhantomSource
from medvlm_r1.data.questions import Questions
from medvlm_r1.grpo import GRPO
from medvlm_r1.module import VLMModule
from medvlm_r1.policy.load import Recipe, load_policy
from medvlm_r1.rewards import Rewards, letter_accuracy, think_format
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.sft import SFT
from medvlm_r1.update import Optimisation

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(
    grpo_lr=1e-3,
    sft_lr=1e-3,
    epochs=1,
    prompts_per_step=4,
    group_size=4,
    micro_batch=4,
    evaluation_batch=16,
    max_prompt_tokens=512,
    max_completion_tokens=24,
    min_pixels=112 * 112,
    max_pixels=112 * 112,
    dtype="float32",
)
PROMPT = instantiate(OmegaConf.load(ROOT / "conf/prompt/medvlm_r1.yaml"))
REWARDS = Rewards({"format": think_format, "accuracy": letter_accuracy}, {})
FORMAT = Rewards({"format": think_format}, {})


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


def module_of(kind, policy, **settings):
    optim = Optimisation(lr=settings.pop("lr", 1e-3), optimizer=settings.pop("optimizer", torch.optim.AdamW))
    shared = {"policy": policy, "prompt": PROMPT, "engine": ReferenceEngine(), "seed": 0}
    shared["rewards"] = settings.pop("rewards", REWARDS)
    if kind is GRPO:
        settings.setdefault("sampling", Sampling(group_size=4, max_tokens=24))
    if kind is not VLMModule:
        settings = {"micro_batch": 4, "optim": optim, **settings}
    return kind(max_completion_tokens=24, **shared, **settings)


def fit(kind, folder, steps=2, n=8, workers=0, **settings):
    """Train a few steps as run.py does; returns the module."""
    seed_everything(0, verbose=False)
    policy = load_policy("embedded", RECIPE)
    module = module_of(kind, policy, **settings)
    questions = Questions(
        PhantomSource("mri", n, "train"),
        PhantomSource("mri", 8, "validation"),
        {"mri": PhantomSource("mri", 8, "test"), "xray": PhantomSource("xray", 6, "test")},
    )
    encode = functools.partial(policy.encoder.encode, prompt=PROMPT)
    data = VQADataModule(questions, encode, 4, 4, seed=0, workers=workers)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    return module


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_the_number_of_workers_changes_nothing(kind, tmp_path):
    alone, helped = fit(kind, tmp_path / "a", workers=0), fit(kind, tmp_path / "b", workers=2)
    assert torch.equal(weights(alone), weights(helped))
    assert [p.text for p in alone.predictions] == [p.text for p in helped.predictions]


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_micro_batches_change_memory_and_not_the_update(kind, tmp_path):
    """With plain SGD, gradients of one prompt at a time add up to those of four at once."""
    start = weights(module_of(VLMModule, load_policy("embedded", RECIPE)))
    settings = {"steps": 1, "optimizer": sgd, "lr": 0.1}
    whole = weights(fit(kind, tmp_path / "a", micro_batch=4, **settings)) - start
    parts = weights(fit(kind, tmp_path / "b", micro_batch=1, **settings)) - start
    assert whole.norm() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_micro_batches_with_token_mean_and_reference(tmp_path):
    settings = {"steps": 1, "optimizer": sgd, "lr": 0.1, "aggregate": "token", "inner_epochs": 2, "beta": 0.5}
    start = weights(module_of(VLMModule, load_policy("embedded", RECIPE)))
    whole = weights(fit(GRPO, tmp_path / "a", micro_batch=4, **settings)) - start
    parts = weights(fit(GRPO, tmp_path / "b", micro_batch=2, **settings)) - start
    assert whole.norm() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_sft_learns_its_targets(tmp_path):
    before = fit(SFT, tmp_path / "a", steps=1, n=8, lr=1e-9)
    after = fit(SFT, tmp_path / "b", steps=12, n=48, lr=1e-3)
    assert sum(p.answered and not p.well_formed for p in after.predictions) > 0.9 * len(after.predictions)
    assert before.step == 1
    assert after.step == 12


def test_grpo_raises_what_it_rewards(tmp_path):
    """Rewarding the think format alone must make completions think."""
    before = fit(GRPO, tmp_path / "a", steps=1, lr=1e-9)
    settings = {"steps": 12, "n": 48, "lr": 3e-4, "beta": 0.0, "rewards": FORMAT}
    after = fit(GRPO, tmp_path / "b", **settings)
    thinks = [sum(p.well_formed for p in m.predictions) for m in (before, after)]
    assert thinks[1] > thinks[0]
    assert thinks[1] > 0.8 * len(after.predictions)


def test_predictions_follow_the_order_of_the_test_sets(tmp_path):
    predictions = fit(SFT, tmp_path, steps=1).predictions
    expected = [("mri", f"mri-test-0-{i:05d}") for i in range(8)]
    expected += [("xray", f"xray-test-0-{i:05d}") for i in range(6)]
    assert [(p.test_set, p.sample_id) for p in predictions] == expected


def test_more_minibatches_than_micro_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="minibatches"):
        fit(GRPO, tmp_path, micro_batch=4, minibatches=2)


def launch(folder, *overrides):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "run.py", "+experiment=grpo_600", "model=tiny", *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted((folder / "outputs" / "runs").iterdir())[-1]


SHORT = [
    "data=phantom",
    "trainer.max_steps=2",
    "data.train.n=16",
    "data.validation.n=8",
    "data.test.mri.n=8",
    "data.test.ct.n=8",
    "data.test.xray.n=8",
]


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    """The same command twice, with another number of workers the second time."""
    return [launch(tmp_path_factory.mktemp(f"twin{w}"), *SHORT, f"workers={w}") for w in (1, 0)]


def without_clock(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


def test_one_seed_gives_the_same_run_twice(twins):
    first, second = twins
    renamed = (first / "predictions.jsonl").read_text().replace(first.name, second.name)
    assert renamed == (second / "predictions.jsonl").read_text()
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in twins]
    for name in ("name", "commit"):  # the folders' own names; a commit may fall between the two runs
        for each in metrics:
            del each["run"][name]
    assert metrics[0] == metrics[1]
    assert (first / "model/model.safetensors").read_bytes() == (
        second / "model/model.safetensors"
    ).read_bytes()
    assert without_clock(first / "metrics.csv") == without_clock(second / "metrics.csv")
    traces = sorted(p.name for p in (first / "rollouts").iterdir())
    assert traces == ["step-0.jsonl", "step-1.jsonl"]
    for name in traces:
        assert (first / "rollouts" / name).read_text() == (second / "rollouts" / name).read_text()


def test_a_run_folder_holds_what_is_promised(twins):
    folder = twins[0]
    promised = [".hydra/config.yaml", "config.yaml", "metrics.csv", "metrics.json", "timing.json", "logs"]
    promised += ["predictions.jsonl", "rollouts", "checkpoints/last.ckpt", "report.html"]
    promised += ["model/config.json", "model/medvlm_r1.json"]
    for name in promised:
        assert (folder / name).exists(), name
    asked = json.loads((folder / "model/medvlm_r1.json").read_text())
    assert (asked["min_pixels"], asked["max_pixels"], asked["image_size"]) == (12544, 12544, None)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["accuracy"]) == ["mri", "ct", "xray"]
    assert {"run", "accuracy", "accuracy_lenient", "format", "tokens", "controls", "audit"} <= set(metrics)
    for cell in metrics["accuracy"].values():
        assert cell["low"] <= cell["value"] <= cell["high"]
        assert cell["n"] == 8
    row = json.loads((folder / "rollouts/step-0.jsonl").read_text().splitlines()[0])
    assert row["total"] == pytest.approx(sum(row["rewards"].values()))
    assert "seconds" in json.loads((folder / "timing.json").read_text())


def test_rollout_rows_are_groups_with_advantages_of_mean_zero(twins):
    rows = [json.loads(line) for line in (twins[0] / "rollouts/step-1.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 8
    groups = {}
    for row in rows:
        groups.setdefault(row["sample_id"], []).append(row)
    for group in groups.values():
        assert [row["completion"] for row in group] == list(range(8))
        assert math.isclose(sum(row["advantage"] for row in group), 0, abs_tol=1e-4)


def test_the_saved_model_is_found_by_its_path(twins):
    policy = load_policy(str(twins[0] / "model"), RECIPE)
    start = load_policy("embedded", RECIPE)
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), start.parameters(), strict=True))
