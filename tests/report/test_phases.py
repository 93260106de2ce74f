"""GRPO on the weights that SFT left: its own row over its seeds, its differences and its work."""

import json

import pytest
from command import run_here
from run_folders import write_run
from training import SHORT

from medvlm_r1.artifacts.record import earlier_phases
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.page.render import write_page
from medvlm_r1.report.run_folder import read_run
from medvlm_r1.report.tables.table import fairness_lines

SFT = {"base": "embedded", "method": "sft", "steps": 75, "questions_seen": 600, "tokens_seen": 90_000}
SFT |= {"learning_rate": 1e-4}


@pytest.fixture
def folder(tmp_path):
    """SFT, GRPO and SFT then GRPO, two seeds each; a GRPO run starts from the weights of its own seed."""
    for seed in (0, 1):
        write_run(tmp_path, "sft", seed)
        write_run(tmp_path, "grpo", seed)
        path = f"outputs/runs/sft-seed{seed}/model"
        both = write_run(tmp_path, "grpo", seed, name=f"both-{seed}", changes={"model.path": path})
        metrics = json.loads((both / "metrics.json").read_text())
        metrics["run"] |= {"earlier": [SFT], "questions_seen": 600, "tokens_seen": 230_000}
        (both / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


@pytest.mark.usefixtures("few_draws")
def test_a_row_of_its_own_over_all_seeds(folder):
    c = compare([folder])
    assert [(g.label, g.seeds) for g in c.groups] == [
        ("SFT", [0, 1]),
        ("GRPO", [0, 1]),
        ("SFT then GRPO", [0, 1]),
    ]
    assert {(d.first, d.second) for d in c.differences} == {("GRPO", "SFT"), ("SFT then GRPO", "SFT")}
    fairness = {f.second: f for f in c.fairness}
    (different,) = fairness["SFT then GRPO"].differences
    assert (different.key, different.first) == ("model.path", "embedded")
    assert different.second == "sft (75 steps, lr 0.0001) after embedded"
    assert not fairness["SFT then GRPO"].fair
    assert fairness["GRPO"].fair
    lines = "\n".join(fairness_lines(fairness["SFT then GRPO"]))
    assert "steps: 75 + 75 (SFT then GRPO), 75 (SFT)" in lines
    assert "tokens_seen: 90,000 + 230,000 (SFT then GRPO), ? (SFT)" in lines
    page = write_page(c, folder, "medvlm-r1 compare").read_text()
    assert "90,000 + 230,000" in page
    assert "SFT then GRPO, GRPO and SFT on MRI, CT and X-ray" in page


def test_phases_add_up_in_the_record_of_the_weights(tmp_path):
    """A short run of each on the weights of the one before, from the command line."""
    short = [*SHORT, "controls=[image]", "audit=null", "trainer.max_steps=1", "model.recipe.group_size=2"]
    run_here(tmp_path, "method=sft", *short, "hydra.run.dir=sft")
    run_here(tmp_path, "method=grpo", *short, "model.path=sft/model", "hydra.run.dir=grpo")
    sft, grpo = read_run(tmp_path / "sft"), read_run(tmp_path / "grpo")
    assert (sft.earlier, sft.title) == ([], "SFT")
    (phase,) = grpo.earlier
    assert phase == {
        "base": "embedded",
        "method": "sft",
        "steps": 1,
        "questions_seen": 8,
        "tokens_seen": sft.facts["tokens_seen"],
        "completion_tokens_seen": sft.facts["completion_tokens_seen"],
        "learning_rate": sft.config["method"]["optim"]["lr"],
    }
    assert sft.facts["tokens_seen"] > 8 * 100
    assert grpo.title == "SFT then GRPO"
    assert grpo.over_phases("questions_seen") == "8 + 8"
    assert [p["method"] for p in earlier_phases(str(tmp_path / "grpo/model"))] == ["sft", "grpo"]
    assert earlier_phases("embedded") == earlier_phases(None) == []
    # an evaluation of trained weights trains nothing: it has no phase
    run_here(tmp_path, "method=zero_shot", *short, "model.path=grpo/model", "hydra.run.dir=test")
    assert read_run(tmp_path / "test").title == "Zero-shot"
