"""Where a run writes: its name, a folder that is free, and one process of all that decides."""

import pytest
from omegaconf import OmegaConf

from medvlm_r1.runs import folder, ranks


def name(*overrides, experiment=None, seed=0):
    task = [f"+experiment={experiment}"] if experiment else []
    choices = {"experiment": experiment} if experiment else {}
    root = {"hydra": {"runtime": {"choices": choices}, "overrides": {"task": [*task, *overrides]}}}
    return folder.run_name(_root_=OmegaConf.create({**root, "seed": seed}))


def test_names_hold_experiment_overrides_and_seed():
    assert name(experiment="grpo_600", seed=3) == "grpo_600-seed3"
    assert name() == "default-seed0"
    assert name("model=tiny", "data=phantom") == name("data=phantom", "model=tiny")
    assert name("seed=3", "overwrite=true", "workers=4", "sweep=x", experiment="sft_600") == "sft_600-seed0"


def test_an_experiment_in_a_folder_has_a_flat_name():
    assert name(experiment="paper/grpo") == "paper_grpo-seed0"


def test_plan_and_card_stay_out_of_the_name():
    assert name("plan=true", "card=h100_80gb", experiment="grpo_600") == "grpo_600-seed0"


def test_long_names_are_cut_and_stay_apart():
    long = [f"data.test.{i}=/a/long/path/number/{i}" for i in range(9)]
    assert len(name(*long)) < 110
    assert name(*long) != name(*long[:-1], "data.test.8=/another")


def test_names_are_safe_for_a_file_system():
    assert "/" not in name("data.train=/a/b c.json", "data.test={mri:/x.json}")


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_a_folder_that_an_earlier_version_named_is_found(long, tmp_path):
    """Its names held ``=``, and a hash of another text if they were long."""
    task = [
        "audit=null",
        "data.train.n=16",
        *(f"data.test.{c}.n=4444444444" for c in ("ct", "mri", "xray") if long),
    ]
    name = "audit=null-data.train.n=16"
    if long:
        name = "audit=null-data.test.ct.n=4444444444-data.test.mri.n=4444444-61fc0b29"
    root = {"hydra": {"runtime": {"choices": {}}, "overrides": {"task": task}}, "seed": 0, "sweep": None}
    root |= {"paths": {"outputs": str(tmp_path)}, "overwrite": False, "resume": "auto", "ckpt_path": None}
    cfg = OmegaConf.create(root)
    for parent, changes in (("runs", {}), ("sweeps/s", {"sweep": "s"})):
        cfg = OmegaConf.create(root | changes)
        old = tmp_path / parent / f"default-{name}-seed0"
        (old / "checkpoints").mkdir(parents=True)
        found = folder.new_run_folder if parent == "runs" else folder.run_name
        assert found(_root_=cfg).endswith(old.name)
    cfg = OmegaConf.create(root | {"resume": None})  # a new run
    assert "=" not in folder.new_run_folder(_root_=cfg)
    new = tmp_path / "runs" / folder._name(cfg)
    new.mkdir()
    assert folder.new_run_folder(_root_=OmegaConf.create(root)) == str(new)


def test_a_used_folder_is_left_alone(tmp_path):
    wanted = tmp_path / "run"
    assert folder.free_folder(wanted, reuse=False) == wanted
    for used in ("run", "run-2"):
        (tmp_path / used).mkdir()
        (tmp_path / used / "metrics.csv").touch()
    assert folder.free_folder(wanted, reuse=False).name == "run-3"
    assert folder.free_folder(wanted, reuse=True) == wanted


@pytest.mark.parametrize(
    ("name", "rank", "later"),
    [("LOCAL_RANK", "0", False), ("LOCAL_RANK", "1", True), ("NODE_RANK", "1", True), ("RANK", "3", True)],
)
def test_one_process_of_all_decides(name, rank, later, monkeypatch):
    monkeypatch.setenv(name, rank)
    assert ranks.is_rank_zero() is not later
    assert (folder.run_log("here") == "here/run.log") is not later


@pytest.mark.parametrize(
    "id", ["a/b-0", "../../etc/x", "..", "patient:1?", "é 中", "x" * 1000, "中" * 300, "a\nb", ""]
)
def test_an_image_of_any_id_lies_in_its_folder(id, tmp_path):
    path = folder.image_path(tmp_path, id)
    assert path.parent == tmp_path
    path.write_bytes(b"")
    assert len(path.name.encode()) < 240


def test_images_of_different_ids_are_different_files(tmp_path):
    ids = ["a/b", "a%2Fb", "a_b", "x" * 300, "x" * 301]
    assert len({folder.image_path(tmp_path, id) for id in ids}) == len(ids)
    assert folder.image_path(tmp_path, "mri-test-0").name == "mri-test-0.png"


def test_scoring_stays_out_of_the_name():
    """``resume=auto`` must find the run that is to be scored otherwise."""
    assert name("evaluation.reading=released") == name()
