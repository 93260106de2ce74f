"""run.py: multirun, comparison, overwriting, earlier versions, user errors."""

import json
import os
import shutil

import pytest
import torch
from command import python, run_here
from omegaconf import OmegaConf

SMALL = [
    "model=tiny",
    "data=phantom",
    "trainer.max_steps=2",
    "data.train.n=16",
    "data.validation.n=4",
    "data.test.mri.n=4",
    "data.test.ct.n=4",
    "data.test.xray.n=4",
    "workers=0",
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    run_here(folder, "-m", "+experiment=zero_shot,sft_600,grpo_600", *SMALL, "sweep=small")
    return folder


def test_a_multirun_writes_one_folder_a_job(sweep):
    runs = sorted(p.parent.name for p in sweep.glob("outputs/sweeps/small/*/metrics.json"))
    assert [r.split("-")[0] for r in runs] == ["grpo_600", "sft_600", "zero_shot"]
    steps = {
        r: json.loads((sweep / "outputs/sweeps/small" / r / "metrics.json").read_text())["run"] for r in runs
    }
    assert [facts["method"] for facts in steps.values()] == ["grpo", "sft", "zero_shot"]
    assert [facts["steps"] for facts in steps.values()] == [2, 2, 0]
    assert {tuple(facts["trained_on"]) for facts in steps.values()} == {("mri",)}


def test_the_comparison_of_a_sweep(sweep):
    done = python(sweep, "-m", "medvlm_r1.cli.compare", "outputs/sweeps/small")
    for word in ("Zero-shot", "SFT", "GRPO", "X-ray", "Fairness"):
        assert word in done.stdout
    comparison = json.loads((sweep / "outputs/sweeps/small/comparison.json").read_text())
    (fairness,) = comparison["fairness"]
    assert fairness["differences"] == []
    assert (sweep / "outputs/sweeps/small/report.html").stat().st_size > 10_000


def test_methods_start_from_the_same_validation(sweep):
    """Before training, GRPO and SFT are the zero-shot model."""
    folders = sorted((sweep / "outputs/sweeps/small").glob("*-seed0"))
    accuracies = []
    for folder in folders:
        header, first, *_ = (folder / "metrics.csv").read_text().splitlines()
        accuracies.append(dict(zip(header.split(","), first.split(","), strict=True))["validation/accuracy"])
    assert len(set(accuracies)) == 1


def test_grpo_and_sft_see_the_same_questions(sweep):
    """The pictures of GRPO's rollouts are those of the data order that the seed fixes for both."""
    (grpo,) = (sweep / "outputs/sweeps/small").glob("grpo_600*")
    seen = []
    for step in (0, 1):
        rows = [json.loads(line) for line in (grpo / f"rollouts/step-{step}.jsonl").read_text().splitlines()]
        seen.append(list(dict.fromkeys(row["sample_id"] for row in rows)))
    sampler = torch.utils.data.DistributedSampler(range(16), 1, 0, shuffle=True, seed=0)
    order = [f"mri-train-0-{i:05d}" for i in sampler]
    assert seen == [order[:8], order[8:]]


def test_checkpoints_are_the_last_and_the_best(sweep):
    (grpo,) = (sweep / "outputs/sweeps/small").glob("grpo_600*")
    last = torch.load(grpo / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert last["medvlm_r1_step"] == 2
    weights = {k: v for k, v in last["state_dict"].items() if k.startswith("policy.model.")}
    assert not any("reference" in key for key in last["state_dict"])
    assert weights


def test_a_sweep_is_resumed_and_overwrite_starts_it_again(sweep):
    small = ["-m", "+experiment=zero_shot", *SMALL, "sweep=small"]
    (folder,) = (sweep / "outputs/sweeps/small").glob("zero_shot*")
    marker = folder / "left_over"
    marker.touch()
    assert "finished already" in run_here(sweep, *small).stdout
    assert marker.exists()
    run_here(sweep, *small, "overwrite=true")
    assert not marker.exists()
    assert len(list((sweep / "outputs/sweeps/small").glob("zero_shot*"))) == 1


def test_memory_segments_of_a_gpu_may_grow_unless_the_user_has_set_the_allocator(tmp_path, monkeypatch):
    ours, older = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    for name in (ours, older):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    run_here(tmp_path, "model.path=nowhere", code=2)  # before anything loads torch
    assert os.environ[ours] == "expandable_segments:True"
    for name in (ours, older):
        monkeypatch.delenv(ours)
        monkeypatch.setenv(name, "max_split_size_mb:128")
        run_here(tmp_path, "model.path=nowhere", code=2)
        assert os.environ.get(ours) == ("max_split_size_mb:128" if name == ours else None)


def test_the_same_run_again_writes_to_a_second_folder(tmp_path):
    for _ in range(2):
        run_here(tmp_path, "+experiment=zero_shot", *SMALL)
    names = sorted(path.name for path in (tmp_path / "outputs/runs").iterdir())
    assert names[1] == f"{names[0]}-2"


def test_a_user_error_deletes_nothing(sweep):
    (folder,) = (sweep / "outputs/sweeps/small").glob("sft_600*")
    arguments = ["-m", "+experiment=sft_600", *SMALL, "sweep=small", "overwrite=true", "select=bset"]
    done = run_here(sweep, *arguments, code=2)
    assert "select is 'bset': use 'last' or 'best'" in done.stderr
    assert (folder / "metrics.json").exists()


def test_bad_data_stops_before_training_with_file_and_row(tmp_path):
    row = {"image": ["none.png"], "question": "q", "options": ["a", "b"], "answer": "a", "subset": "X-Ray"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    rows = str(tmp_path / "rows.json")
    done = run_here(tmp_path, "data=mcq_json", f"data.train={rows}", f"data.test={{xray:{rows}}}", code=2)
    assert "rows.json row 0" in done.stderr
    assert "none.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def old_sweep(sweep, tmp_path):
    """The sweep, as an earlier version of the package would have left it."""
    folder = shutil.copytree(sweep / "outputs/sweeps/small", tmp_path / "outputs/sweeps/small")
    for path in folder.glob("*/config.yaml"):
        config = OmegaConf.load(path)
        config.tune, config.watch = config.pop("peft"), config.pop("callbacks")
        OmegaConf.save(config, path)
        (path.parent / "attempts.json").rename(path.parent / "lives.json")
    return folder


def test_a_run_of_an_earlier_version_is_not_resumed(old_sweep, tmp_path):
    command = ["-m", "+experiment=zero_shot,sft_600", *SMALL, "sweep=small"]
    assert run_here(tmp_path, *command).stdout.count("finished already") == 2
    (unfinished,) = old_sweep.glob("sft_600*")
    (unfinished / "metrics.json").unlink()
    done = run_here(tmp_path, *command, code=1)
    assert done.stdout.count("finished already") == 1
    (line,) = [line for line in done.stderr.splitlines() if "earlier version of medvlm_r1" in line]
    assert str(unfinished) in line
    assert "overwrite=true" in line
    run_here(tmp_path, *command[:1], "+experiment=sft_600", *command[2:], "overwrite=true")
    assert (unfinished / "metrics.json").exists()


def test_a_checkpoint_of_an_earlier_version_is_not_resumed(sweep, tmp_path):
    (path,) = (sweep / "outputs/sweeps/small").glob("sft_600*/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["Checkpoints"]["version"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    done = run_here(tmp_path, "+experiment=sft_600", *SMALL, f"ckpt_path={tmp_path}/old.ckpt", code=2)
    assert f"an earlier version of medvlm_r1 wrote {tmp_path}/old.ckpt" in done.stderr
