"""Run folders of an earlier version are read like those of this one."""

import json

import pandas as pd
import pytest
from omegaconf import OmegaConf
from run_folders import SETS, write_run

from medvlm_r1.cli.sweep import main
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.figures import curve_panels
from medvlm_r1.report.matrix.assemble import assemble
from medvlm_r1.report.page.render import write_comparison_report
from medvlm_r1.report.run_folder import read_run
from medvlm_r1.report.sweep.summary import read_sweep
from medvlm_r1.runs import status

pytestmark = pytest.mark.usefixtures("few_draws")

NEW = {"method.num_iterations": 2, "method.loss.clip_low": 0.2, "image_cache.limit": 20}


def write(parent, seed, name="", **more):
    return write_run(parent, "grpo", seed, n=20, name=name or f"seed{seed}", changes=NEW | more)


def make_old(folder):
    """Give a run folder the keys, columns and files that it had before they were renamed."""
    config = OmegaConf.load(folder / "config.yaml")
    config.method._target_ = "medvlm_r1.grpo.GRPO"
    config.method.inner_epochs = config.method.pop("num_iterations")
    config.method.clip_low = config.method.pop("loss").clip_low
    config.method.optim.clip_norm = config.method.optim.pop("max_grad_norm")
    config.pictures, config.watch = config.pop("image_cache"), config.pop("callbacks")
    for source in (config.data.train, *config.data.test.values()):
        source._target_ = "medvlm_r1.data.phantom.PhantomSource"
    OmegaConf.save(config, folder / "config.yaml")
    overrides = OmegaConf.load(folder / ".hydra/overrides.yaml")
    overrides.append(f"method.inner_epochs={config.method.inner_epochs}")
    OmegaConf.save(overrides, folder / ".hydra/overrides.yaml")
    curves = pd.read_csv(folder / "metrics.csv")
    curves = curves.drop(columns="train/frac_zero_advantage", errors="ignore")
    curves.assign(**{"train/groups_with_spread": 0.75}).to_csv(folder / "metrics.csv", index=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["counters"] = {"host_reads": 3, "pass_tokens": 7, "prefill_tokens": 5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    life = {"began": 0.0, "seconds": 3600.0, "devices": 1, "hardware": "2 CPU cores"}
    (folder / "lives.json").write_text(json.dumps([life]))
    return folder


def test_an_old_run_is_a_seed_of_the_same_configuration(tmp_path):
    make_old(write(tmp_path, 0))
    write(tmp_path, 1)
    write_run(tmp_path, "sft", n=20)
    c = compare([tmp_path])
    assert [(group.label, group.seeds) for group in c.groups] == [("SFT", [0]), ("GRPO", [0, 1])]
    assert [f.differences for f in c.fairness] == [()]
    assert "Zero-advantage groups" in [panel.title for panel in curve_panels(c)]
    assert "GRPO" in write_comparison_report([tmp_path], tmp_path).read_text()


def test_names_of_an_old_run_are_those_of_this_version(tmp_path):
    run = read_run(make_old(write(tmp_path, 0)))
    assert run.config["method"]["num_iterations"] == 2
    assert run.config["method"]["loss"] == {"clip_low": 0.2}
    assert run.config["callbacks"]["checkpoint"]["dirpath"].endswith("checkpoints")
    assert run.overrides["method.num_iterations"] == "2"
    assert set(run.curve("train/frac_zero_advantage")) == {0.25}
    assert run.metrics["counters"] == {"device_syncs": 3, "forward_tokens": 7, "prefill_tokens": 5}


def test_a_metric_that_two_versions_logged_is_one_curve(tmp_path):
    """A run that one version began and another resumed has both columns, each with its own steps."""
    folder = write(tmp_path, 0)
    oldest = {"step": 0, "train/clipped": 0.1, "train/groups_with_spread": 1.0}
    old = {"step": 1, "train/clip_fraction": 0.1, "train/active_groups": 0.75}
    new = {"step": 2, "train/clip_fraction": 0.2, "train/frac_zero_advantage": 0.5}
    pd.DataFrame([oldest, old, new]).to_csv(folder / "metrics.csv", index=False)
    run = read_run(folder)
    assert run.curve("train/clip_fraction").to_dict() == {0: 0.1, 1: 0.1, 2: 0.2}
    assert run.curve("train/frac_zero_advantage").to_dict() == {0: 0.0, 1: 0.25, 2: 0.5}


def test_a_sweep_of_old_runs_has_the_factors_of_this_version(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for iterations in (1, 2):
        make_old(write(sweep, 0, f"iterations{iterations}", **{"method.num_iterations": iterations}))
    status.record_jobs(sweep, {path.name: [] for path in sorted(sweep.iterdir()) if path.is_dir()})
    summary = read_sweep(sweep)
    assert summary.factors == {"method.num_iterations": ["1", "2"]}
    assert main([str(sweep)]) == 0
    assert "2.00" in capsys.readouterr().out  # device hours of lives.json


def test_old_and_new_runs_form_one_matrix(tmp_path):
    for k, domain in enumerate(SETS):
        folder = write(tmp_path, 0, domain, **{"data.domain": domain, "data.train.modality": domain})
        if k:
            make_old(folder)
    (matrix,) = assemble([tmp_path]).matrices
    assert list(matrix.rows) == list(SETS)
