"""Several sweeps as one family: adjusted together, judged by a planned smallest difference, drawn."""

import csv
import json
import shutil
from collections import Counter

import pytest
from omegaconf import OmegaConf
from PIL import Image
from run_folders import write_run

from medvlm_r1.cli.sweep import main
from medvlm_r1.evaluate.statistics import Interval, holm
from medvlm_r1.report.figures import PRINT
from medvlm_r1.report.sweep.effects import Effect
from medvlm_r1.report.sweep.figures import effects_figure
from medvlm_r1.report.sweep.joint import read_sweeps


@pytest.mark.parametrize(
    ("low", "high", "adjusted", "word"),
    [
        (0.02, 0.12, 0.01, "better"),
        (-0.12, -0.02, 0.01, "worse"),
        (0.01, 0.04, 0.01, "better by less than 5"),
        (-0.04, -0.01, 0.049, "worse by less than 5"),
        (-0.01, 0.04, 1.0, "equivalent"),
        (0.01, 0.04, 0.3, "equivalent"),  # before the adjustment it was a difference
        (-0.01, 0.051, 1.0, "cannot be told"),
        (-0.051, 0.01, 1.0, "cannot be told"),
        (-0.05, 0.01, 1.0, "cannot be told"),  # a difference of 5 would matter
    ],
)
def test_verdicts_by_hand(low, high, adjusted, word):
    interval = Interval((low + high) / 2, low, high, 600, "")
    effect = Effect("beta", "0", "0.04", 1, 3, 0, interval, 0.001, adjusted)
    assert effect.verdict(0.05) == word


@pytest.fixture
def apart(tmp_path):
    """A reference of two seeds, and two sweeps that hold its other levels alone."""
    for sweep, method, change in [
        ("reference", "sft", {}),
        ("extra", "sft", {"prompt.extra": "1"}),
        ("method", "grpo", {}),
    ]:
        for seed in (0, 1):
            run = write_run(tmp_path / sweep, method, seed=seed, changes={"prompt.extra": "0"} | change)
            overrides = [
                f"+experiment={method}_600",
                f"seed={seed}",
                *(f"{k}={v}" for k, v in change.items()),
            ]
            OmegaConf.save(OmegaConf.create(overrides), run / ".hydra/overrides.yaml")
    return [tmp_path / name for name in ("reference", "extra", "method")]


def test_several_sweeps_are_one_family_with_a_shared_first_level(apart, few_draws, capsys, tmp_path):
    joint = read_sweeps(apart, smallest=0.05)
    extra, method = joint.effects
    assert (extra.factor, extra.level, extra.reference, extra.seeds) == ("prompt.extra", "1", "0", 2)
    assert (method.factor, method.level, method.reference) == ("experiment", "grpo_600", "sft_600")
    assert [effect.adjusted for effect in joint.effects] == holm([effect.p for effect in joint.effects])
    assert method.adjusted == 2 * method.p  # Holm over both sweeps
    assert [effect.verdict(0.05) for effect in joint.effects] == ["equivalent", "better"]
    assert sum(cost.runs for cost in joint.costs.values()) == 0  # run folders of the tests record no attempts

    out = tmp_path / "joint"
    assert main([*map(str, apart), "--smallest", "5", "--out", str(out)]) == 0
    assert "Planned smallest difference: 5 points" in " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "sweep.json").read_text())
    assert [effect["verdict"] for effect in found["effects"]] == ["equivalent", "better"]
    assert found["effects"][1]["detectable"] == pytest.approx(joint.detectable[1])
    assert [len(sweep["statuses"]) for sweep in found["sweeps"].values()] == [2, 2, 2]
    with (out / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * (2 + 4 + 4)
    assert {line["prompt.extra"] for line in lines if line["sweep"] == "extra"} == {"0", "1"}
    assert "![Effect of each level](effects.png)" in (out / "sweep.md").read_text()


def test_a_sweep_that_changes_two_keys_keeps_its_own_first_level(apart, few_draws):
    """A prompt and the reward for its format change together: the reference is no level of theirs."""
    reference, extra, _ = apart
    for run in extra.iterdir():
        overrides = [*OmegaConf.load(run / ".hydra/overrides.yaml"), "reward.weights.format=0"]
        OmegaConf.save(OmegaConf.create(overrides), run / ".hydra/overrides.yaml")
    assert read_sweeps([reference, extra]).effects == []


def test_the_same_factor_in_two_sweeps_is_named_with_its_sweep(apart, few_draws):
    _, extra, _ = apart
    shutil.copytree(extra, extra.with_name("again"))
    names = [effect.factor for effect in read_sweeps([*apart[:2], extra.with_name("again")]).effects]
    assert names == ["extra: prompt.extra", "again: prompt.extra"]


def test_the_band_and_the_ties_are_drawn(apart, few_draws, tmp_path):
    """The band is as wide as the planned difference, a tie is grey and a supported difference blue."""

    def colours(smallest):
        path = effects_figure(read_sweeps(apart, smallest=smallest), tmp_path / "effects.png")
        with Image.open(path) as image:
            counts = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
        return Counter({colour: count for count, colour in counts})

    blue, grey = (to_rgb(colour) for colour in (PRINT.series[2], PRINT.muted))
    none, narrow, wide, planned = map(colours, (None, 0.005, 0.01, 0.05))
    band = max(narrow.keys() - none.keys(), key=narrow.__getitem__)
    assert wide[band] == pytest.approx(2 * narrow[band], rel=0.1)  # neither moves the limits of the axis
    assert planned[blue] > 100
    assert planned[grey] > none[grey] + 50  # the tie's dot is hollow without a planned difference


def to_rgb(colour):
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
