"""Whole runs on the embedded model: they learn the same thing twice, and write what they promise."""

import csv
import json
import math

import pytest
import torch
from command import run_alone
from training import RECIPE, SHORT, fit, launch, module_of, sgd

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.policy.loading.load import load_policy


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
    settings = {
        "steps": 1,
        "optimizer": sgd,
        "lr": 0.1,
        "loss": PolicyLoss(loss_type="token"),
        "num_iterations": 2,
        "beta": 0.5,
    }
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


def test_predictions_follow_the_order_of_the_test_sets(tmp_path):
    predictions = fit(SFT, tmp_path, steps=1).predictions
    expected = [("mri", f"mri-test-0-{i:05d}") for i in range(8)]
    expected += [("xray", f"xray-test-0-{i:05d}") for i in range(6)]
    assert [(p.test_set, p.sample_id) for p in predictions] == expected


def test_more_minibatches_than_micro_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="minibatches"):
        fit(GRPO, tmp_path, micro_batch=4, num_minibatches=2)


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    """The same command twice, with another number of workers, and here, the second time."""
    alone = launch(tmp_path_factory.mktemp("twin1"), *SHORT, "workers=1", start=run_alone)
    return [alone, launch(tmp_path_factory.mktemp("twin0"), *SHORT, "workers=0")]


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
