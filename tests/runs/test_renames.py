"""Names of earlier versions: typed on the command line, and in the configuration of an old run."""

import re
import shutil

import pytest
from command import ROOT, run_here
from hydra.core.override_parser.overrides_parser import OverridesParser

from medvlm_r1.launch import compose
from medvlm_r1.runs import renames
from medvlm_r1.runs.renames import KEYS, METRICS, renamed, renamed_config, renamed_overrides

PLAN = ["model=tiny", "data=phantom", "plan=true"]


@pytest.mark.parametrize(
    ("typed", "rewritten", "lines"),
    [
        ("tune=lora", "peft=lora", ["`tune` is now `peft`"]),
        ("tune=lora,full", "peft=lora,full", ["`tune` is now `peft`"]),
        ("+tune@model.other=lora", "+peft@model.other=lora", ["`tune` is now `peft`"]),
        ("+logger@watch.x=csv", "+logger@callbacks.x=csv", ["`watch.x` is now `callbacks.x`"]),
        (
            "watch.last.every=5",
            "callbacks.last.every=5",
            ["`watch.last.every` is now `callbacks.last.every`"],
        ),
        ("watch.pictures.pictures=9", "callbacks.images.per_test_set=9", None),
        ("~watch.best", "~callbacks.best", ["`watch.best` is now `callbacks.best`"]),
        ("++watch.x.y={a: 1}", "++callbacks.x.y={a: 1}", ["`watch.x.y` is now `callbacks.x.y`"]),
        ("seed=${watch.last.every}", "seed=${callbacks.last.every}", None),
    ],
)
def test_an_old_key_is_rewritten_with_one_line(typed, rewritten, lines):
    arguments, notices = renamed_overrides([typed])
    assert arguments == [rewritten]
    assert lines is None or notices == lines
    OverridesParser.create().parse_overrides(arguments)


@pytest.mark.parametrize(
    "argument",
    [
        *("peft=lora", "callbacks.last.every=5", "~callbacks.best", "prompt.extra='tune=1'", "seed=watch.x"),
        *("data.train=/data/watch.x/tune.json", "tuner=1", "model.tune=1", "hydra/sweeper=search", "-m"),
    ],
)
def test_other_arguments_stay_as_they_are(argument):
    assert renamed_overrides([argument]) == ([argument], [])


def test_renames_in_several_places_of_a_path_add_up(monkeypatch):
    more = {"peft.lr_factor": "peft.lr_scale", "method.advantages": "method.estimator"}
    monkeypatch.setattr(renames, "KEYS", {**more, **KEYS})
    assert renamed("tune.lr_factor") == "peft.lr_scale"
    assert renamed("method/advantages") == "method/estimator"
    config = {
        "tune": {"lr_factor": 10.0, "train": "all"},
        "watch": {},
        "method": {"advantages": {"a": [1]}},
    }
    assert renamed_config(config) == {
        "peft": {"lr_scale": 10.0, "train": "all"},
        "callbacks": {},
        "method": {"estimator": {"a": [1]}},
    }


def test_a_configuration_without_old_keys_stays_as_it_is():
    config = {"peft": {"train": "all"}, "data": {"columns": {"a.b": "c", "image": None}, "n": []}, "seed": 0}
    assert renamed_config(config) == config
    numbers = {"logger": {"own": {"colours": {1: "red"}}}}
    assert renamed_config(numbers) == numbers


def test_every_new_name_is_final():
    assert all(renamed(new) == new for new in KEYS.values())
    assert not METRICS.keys() & set(METRICS.values())


def test_a_command_with_old_keys_plans_as_one_with_new_keys(tmp_path):
    old = run_here(tmp_path, *PLAN, "tune=lora", "tune.adapter.r=8", "watch.last.every=5", "~watch.best")
    new = run_here(
        tmp_path, *PLAN, "peft=lora", "peft.adapter.r=8", "callbacks.last.every=5", "~callbacks.best"
    )
    assert old.stdout == new.stdout
    assert "`tune` is now `peft`" in old.stderr.splitlines()
    assert "`~" not in old.stderr
    assert "is now" not in new.stderr


def test_a_multirun_over_an_old_key(tmp_path):
    old = run_here(tmp_path, "-m", *PLAN, "tune=lora,full", "watch=null", "sweep=s")
    assert "peft=full" in old.stdout
    assert old.stderr.splitlines() == ["`tune` is now `peft`", "`watch` is now `callbacks`"]


@pytest.mark.parametrize("text", ["defaults: [override /tune: lora]", "watch: {last: {every: 5}}"])
def test_an_old_key_in_a_file_is_refused_with_its_present_name(text, tmp_path, monkeypatch):
    """In an experiment of a user's own."""
    conf = shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (conf / "experiment/own.yaml").write_text(f"# @package _global_\n{text}\n")
    monkeypatch.setattr(compose, "CONF", conf)
    printed = run_here(tmp_path, "+experiment=own", code=2).stderr
    assert re.search(r"error: `(tune|watch)` is now `(peft|callbacks)`: rename it in the file", printed)
