"""The measurement at real size, on the embedded model: it runs as a command, and its checks hold."""

import json
import sys

import build_run
import measure
import torch
from models import random_model


def test_the_command_measures_and_checks(tmp_path, monkeypatch):
    """Its cases are processes of their own; only their start is here."""
    result = tmp_path / "result.json"
    few = ["--override", "model.recipe.prompts_per_step=4", "model.recipe.group_size=4"]
    command = ["measure.py", "--model", "tiny", "--cases", "lora-grpo", "--json", str(result), *few]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    measure.main()
    results = json.loads(result.read_text())
    assert results["parity"]["largest_difference"] < 1e-4
    found = results["cases"]["lora-grpo"]
    assert found["finite"]
    assert found["loaded_exactly"]
    assert found["resumed_step_differs_by"] < 1e-6
    assert len(found["losses"]) == 3
    parts = ("sample", "reference", "train")
    assert found["seconds"]["step"] > sum(found["seconds"][name] for name in parts) * 0.9
    assert found["seconds"]["train"] >= found["seconds"]["update"]


def test_a_random_checkpoint_keeps_the_head_tied(encoder):
    """Storage given to two tied matrices separately would make another, larger model."""
    model = random_model(encoder)
    weights = build_run.random_weights(model.config, torch.device("cpu"))
    assert weights.lm_head.weight is weights.model.language_model.embed_tokens.weight
    assert sum(p.numel() for p in weights.parameters()) == sum(p.numel() for p in model.parameters())
