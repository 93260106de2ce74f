"""Multiruns: killed and started again, failed and tried again, by several launchers; their summary."""

import csv
import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command import ROOT, environment, run_alone, run_here
from omegaconf import OmegaConf
from PIL import Image
from run_folders import write_run

from medvlm_r1.cli.sweep import main
from medvlm_r1.evaluate.statistics import holm, seeds_difference
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.sweep.summary import read_sweep
from medvlm_r1.runs import status

TINY = ["model=tiny", "data=phantom", "workers=0", "audit=null", "logger=csv", "controls=[image]"]
TINY += ["data.train.n=8", "data.validation.n=4", "data.test.mri.n=4", "data.test.ct.n=4"]
TINY += ["data.test.xray.n=4", "model.recipe.prompts_per_step=4", "callbacks.last.every=1"]


def attempts(folder):
    return {path.parent.name: len(status.attempts(path.parent)) for path in folder.glob("*/attempts.json")}


def begin(folder, *arguments):
    """``python run.py`` in the background."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, ROOT / "run.py", *arguments], cwd=folder, env=environment(), **quiet
    )


def test_a_sweep_killed_twice_ends_complete_each_run_once(tmp_path, capsys):
    axes = ["+experiment=zero_shot", "prompt=medvlm_r1,med_r1", "seed=0,1"]
    command = ["-m", *axes, *TINY, "sweep=four"]
    sweep = tmp_path / "outputs/sweeps/four"
    for finished in (1, 3):
        process = begin(tmp_path, *command)
        while len(list(sweep.glob("*/metrics.json"))) < finished:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}
        assert main([str(sweep)]) == 1
        assert capsys.readouterr().out.startswith(f"4 runs: {len(before)} finished")
    assert "4 runs: 4 finished" in run_here(tmp_path, *command).stdout
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())  # none made again
    assert len(attempts(sweep)) == 4
    assert sum(attempts(sweep).values()) <= 6  # those that a kill hit have two
    assert main([str(sweep)]) == 0
    summary = json.loads((sweep / "sweep.json").read_text())
    (found,) = summary["sweeps"].values()
    assert set(found["statuses"].values()) == {"finished"}
    assert found["factors"]["prompt"] == ["medvlm_r1", "med_r1"]
    (cost,) = found["costs"].values()
    assert (cost["runs"], cost["attempts"]) == (4, sum(attempts(sweep).values()))
    assert len(found["cells"]) == 2
    for cell in found["cells"]:
        assert cell["seeds"] == [0, 1]
        rows = [
            json.loads(line) for name in cell["runs"] for line in (sweep / name / "predictions.jsonl").open()
        ]
        by_set = [
            [row["correct"] for row in rows if row["test_set"] == test] for test in ("mri", "ct", "xray")
        ]
        assert cell["accuracy"]["value"] == pytest.approx(np.mean(list(map(np.mean, by_set))))
    with (sweep / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 * 3


def test_the_same_sweep_started_twice_at_once_shares_its_runs_out(tmp_path):
    command = ["-m", "+experiment=zero_shot", *TINY, "seed=0,1,2", "sweep=s"]
    sweep = tmp_path / "outputs/sweeps/s"
    first = begin(tmp_path, *command)
    while not attempts(sweep):
        assert first.poll() is None
        time.sleep(0.02)
    assert "left to the process that is working on it" in run_here(tmp_path, *command).stdout
    assert first.wait() == 0
    assert list(attempts(sweep).values()) == [1, 1, 1]
    assert set(status.statuses_of(sweep).values()) == {"finished"}


def questions(path, shade):
    """Four questions about a picture of one shade, in a file."""
    Image.new("RGB", (56, 56), (shade,) * 3).save(path.with_suffix(".png"))
    row = {"image": [path.with_suffix(".png").name], "options": ["a", "b"], "answer": "a", "subset": "X-Ray"}
    path.write_text(json.dumps([row | {"question": f"Which one is number {k}?"} for k in range(4)]))


def test_failed_runs_are_told_and_tried_again_on_request(tmp_path):
    for shade, name in enumerate(["train", "validation", "test"]):
        questions(tmp_path / f"{name}.json", 80 * shade)
    command = [
        "-m",
        "+experiment=zero_shot",
        "model=tiny",
        "model.recipe.prompts_per_step=4",
        "data=mcq_json",
    ]
    command += ["data.train=train.json,late.json"]
    command += ["data.validation=validation.json", "data.n_validation=4", "data.test={xray:test.json}"]
    command += ["controls=[image]", "audit=null", "workers=0", "sweep=s"]
    sweep = tmp_path / "outputs/sweeps/s"
    said = run_here(tmp_path, *command, code=1).stdout
    assert "2 runs: 1 finished, 1 failed" in said
    assert "late.json" in said.split("2 runs: 1 finished, 1 failed")[1]
    questions(tmp_path / "late.json", 200)
    again = run_here(tmp_path, *command, code=1)
    assert "finished already" in again.stdout
    assert "it failed before (retry=true tries again)" in again.stdout
    assert sorted(attempts(sweep).values()) == [1, 1]
    assert "2 runs: 2 finished" in run_here(tmp_path, *command, "retry=true").stdout
    assert sorted(attempts(sweep).values()) == [1, 2]


def test_a_setting_that_cannot_be_is_told_before_the_first_run(tmp_path):
    command = ["-m", "+experiment=zero_shot", *TINY, "select=last,first", "sweep=s"]
    assert "select is 'first'" in run_here(tmp_path, *command, code=2).stderr
    assert not list(tmp_path.glob("outputs/sweeps/s/*/"))


def test_runs_that_would_share_a_folder_are_refused(tmp_path):
    command = ["-m", "+experiment=zero_shot", *TINY[:-1], "controls=[image],[image,blank]", "sweep=s"]
    command.remove("controls=[image]")
    assert "would share the folder zero_shot-" in run_here(tmp_path, *command, code=2).stderr


def test_other_settings_under_one_name_are_refused(tmp_path):
    run_here(tmp_path, "-m", "+experiment=zero_shot", *TINY, "sweep=s")
    changed = [*TINY, "controls=[image,blank]"]
    changed.remove("controls=[image]")
    said = run_here(tmp_path, "-m", "+experiment=zero_shot", *changed, "sweep=s", code=1)
    assert "was started with other settings (controls was ['image'] and is ['image', 'blank'])" in said.stderr


def test_a_multirun_of_two_processes_each(tmp_path):
    """Under DDP as Lightning starts it: both runs end, and what is finished is skipped by both processes."""
    command = ["-m", "+experiment=zero_shot", *TINY, "trainer=ddp", "trainer.accelerator=cpu"]
    sweep = tmp_path / "outputs/sweeps/s"
    run_alone(tmp_path, *command, "seed=0", "sweep=s")
    assert list(attempts(sweep).values()) == [1]
    said = run_alone(tmp_path, *command, "seed=0,1", "sweep=s").stdout
    assert said.count("finished already") == 1
    assert "2 runs: 2 finished" in said
    assert list(attempts(sweep).values()) == [1, 1]
    assert [status.attempts(p)[0]["devices"] for p in sorted(sweep.glob("*seed?"))] == [2, 2]
    for path in sweep.glob("*/predictions.jsonl"):
        assert len({json.loads(line)["sample_id"] for line in path.open()}) == 12


# --- launchers and sweepers ---------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["processes", "submitit_local"])
def test_launchers_make_every_run(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # their processes look for run.py there
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = ["hydra/launcher=" + launcher, "seed=0,1", "sweep=s"]
    said = run_here(tmp_path, "-m", "+experiment=zero_shot", *TINY, *more).stdout
    assert "2 runs: 2 finished" in said
    assert sorted(attempts(tmp_path / "outputs/sweeps/s").values()) == [1, 1]


def test_a_search_started_again_repeats_no_run(tmp_path):
    search = ["-m", "hydra/sweeper=search", "hydra.sweeper.n_trials=2", "+experiment=sft_600", *TINY]
    search += ["method.optim.lr=tag(log,interval(1e-5,1e-3))", "sweep=s"]
    run_here(tmp_path, *search)
    sweep = tmp_path / "outputs/sweeps/s"
    search[2] = "hydra.sweeper.n_trials=3"
    said = run_here(tmp_path, *search).stdout
    assert said.count("finished already") == 2
    assert list(attempts(sweep).values()) == [1, 1, 1]
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    judged = [json.loads(path.read_text())["validation"]["accuracy"] for path in sweep.glob("*/metrics.json")]
    assert best.best_value == pytest.approx(max(judged))


@pytest.mark.parametrize(
    "option", ["launcher=processes", "launcher=slurm", "launcher=ray_cluster", "sweeper=search"]
)
def test_an_option_that_is_not_installed_says_how_to(option, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hydra_plugins")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hydra_plugins", None)
    said = run_here(tmp_path, "-m", f"hydra/{option}", *TINY, "sweep=s", code=2).stderr
    assert "pip install -e '.[" in said


# --- the summary --------------------------------------------------------------------------------------


@pytest.fixture
def crossed(tmp_path):
    """Two factors and two seeds; grpo is far above sft whatever beta is."""
    sweep = tmp_path / "sweep"
    for method, beta, seed in itertools.product(("sft", "grpo"), ("0", "0.04"), (0, 1)):
        run = write_run(
            sweep, method, seed=seed, name=f"{method}-{beta}-{seed}", changes={"prompt.extra": beta}
        )
        overrides = [f"+experiment={method}_600", f"prompt.extra={beta}", f"seed={seed}"]
        OmegaConf.save(OmegaConf.create(overrides), run / ".hydra/overrides.yaml")
    status.record_jobs(
        sweep, {f"{m}-{b}-{s}": [] for m in ("sft", "grpo") for b in ("0", "0.04") for s in (0, 1)}
    )
    return sweep


def test_effects_are_matched_differences(crossed, few_draws):
    found = read_sweep(crossed)
    assert found.factors == {"experiment": ["sft_600", "grpo_600"], "prompt.extra": ["0", "0.04"]}
    experiment, extra = found.effects
    assert (experiment.settings, experiment.seeds, extra.settings) == (2, 2, 2)

    def mean(levels, test):
        """``[seeds, questions]``, averaged over the settings of the other factor."""
        return np.mean([found.cells[level].outcomes(test) for level in levels], axis=0)

    tests = ["mri", "ct", "xray"]
    grpo, sft = ([mean([(m, "0"), (m, "0.04")], t) for t in tests] for m in ("grpo_600", "sft_600"))
    groups = [found.cells["sft_600", "0"].image_groups(t) for t in tests]
    interval, p = seeds_difference(grpo, sft, groups)
    assert (experiment.interval, experiment.p) == (interval, p)
    assert experiment.interval.value > 0.1
    assert experiment.supported
    assert [e.adjusted for e in found.effects] == holm([e.p for e in found.effects])
    assert extra.interval.value == 0  # the fixture's answers do not depend on it
    assert not extra.supported


def test_effects_outside_the_training_domain(crossed, few_draws):
    whole, outside, ct = (read_sweep(crossed, on).effects[0].interval for on in ("mean", "outside", "ct"))
    assert len({i.value for i in (whole, outside, ct)}) == 3
    assert (whole.n, outside.n, ct.n) == (180, 120, 60)
    with pytest.raises(RunFolderError, match=r"no test set 'oct': use one of mean, outside, mri"):
        _ = read_sweep(crossed, "oct").effects


def test_levels_without_a_partner_are_left_out(crossed, few_draws):
    for seed in (0, 1):
        (crossed / f"grpo-0.04-{seed}" / "metrics.json").unlink()
    found = read_sweep(crossed)
    assert list(found.statuses.values()).count("unfinished") == 2
    assert {e.factor: e.settings for e in found.effects} == {"experiment": 1, "prompt.extra": 1}


def test_a_run_without_the_key_is_no_level_of_it(crossed, few_draws):
    """A zero-shot baseline in the same sweep hides no effect of what it does not have."""
    run = write_run(crossed, "zero_shot", name="a-baseline")
    OmegaConf.save(OmegaConf.create(["+experiment=zero_shot", "seed=0"]), run / ".hydra/overrides.yaml")
    settings = OmegaConf.load(run / "config.yaml")
    OmegaConf.save(settings, run / "config.yaml")
    status.record_jobs(crossed, {"a-baseline": []})
    found = read_sweep(crossed)
    assert found.factors["prompt.extra"] == ["0", "0.04", ""]
    effects = {(e.factor, e.level): (e.reference, e.settings) for e in found.effects}
    assert effects["prompt.extra", "0.04"] == ("0", 2)
    assert effects["experiment", "grpo_600"] == ("sft_600", 2)
    assert ("prompt.extra", "") not in effects


def test_missing_runs_cost_as_few_others_as_can_be(crossed, few_draws):
    """Each setting lacks another seed: one setting with its seed is kept, not none."""
    (crossed / "sft-0-0/metrics.json").unlink()
    (crossed / "grpo-0.04-1/metrics.json").unlink()
    experiment = read_sweep(crossed).effects[0]
    assert (experiment.settings, experiment.seeds, experiment.left_out) == (1, 1, 1)
    (crossed / "sft-0-1/metrics.json").unlink()
    experiment = read_sweep(crossed).effects[0]
    assert (experiment.settings, experiment.seeds, experiment.left_out) == (1, 1, 0)


def test_the_command_writes_tables_and_drawings(crossed, few_draws, capsys):
    assert main([str(crossed)]) == 0
    said = capsys.readouterr().out
    assert "8 runs: 8 finished" in said
    assert "grpo_600 \N{MINUS SIGN} sft_600" in said
    for name in ("effects.png", "parallel.png"):
        with Image.open(crossed / name) as image:
            assert image.width > 600
    assert "### Effects" in (crossed / "sweep.md").read_text()
    assert main([str(crossed / "nothing")]) == 2
    assert main([str(crossed), "--smallest", "0"]) == 2
    assert "--smallest is 0: give points of accuracy between 0 and 100, such as 5" in capsys.readouterr().err
