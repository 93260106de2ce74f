"""Two processes do what one does: the same losses, gradients and weights, and only one of them writes."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from models import encoder_for, random_model
from torch.distributed import init_device_mesh
from training import PROMPT, RECIPE, ROOT, phantoms
from two_processes import steps

from medvlm_r1.data.datamodule import VQADataModule
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.policy import Policy

SCENARIOS = (
    "sft",
    "grpo",
    "normalised",
    "rloo",
    "limit",
    "grpo_two_passes",
    "lora",
    "language_model",
    "pictureless",
    "qwen3_vl",
    "qwen3_vl_frozen_tower",
)
# Notes every file that a process other than the first opens for writing.
WATCHER = """
import os, sys
def note(event, arguments):
    if event == "open" and os.environ.get("LOCAL_RANK", "0") != "0" and isinstance(arguments[0], str):
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        writes = writes or isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and "outputs" in os.path.abspath(arguments[0]):
            os.write(LOG, (os.path.abspath(arguments[0]) + "\\n").encode())
    made = event == "os.mkdir" and "outputs" in str(arguments[0]) and not os.path.exists(arguments[0])
    if made and os.environ.get("LOCAL_RANK", "0") != "0":
        os.write(LOG, (str(arguments[0]) + "\\n").encode())
LOG = os.open(os.environ["WATCHER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.addaudithook(note)
"""


def launch(command, folder, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def seen(tmp_path_factory, encoder):
    """What each rank saw: {strategy: {scenario: [rank 0, rank 1]}}."""
    folder = tmp_path_factory.mktemp("steps")
    own = encoder_for(encoder, "qwen3_vl")
    model = random_model(own, family="qwen3_vl")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.4)  # calmer, so that fp32 keeps 1e-5 of its gradients
    Policy(model, own).save(folder / "qwen3_vl")
    launch([sys.executable, ROOT / "tests/support/two_processes.py", folder, "ddp", "fsdp"], folder)
    steps("single", folder / "single")
    return {
        strategy: {
            name: [torch.load(folder / strategy / f"{name}-{rank}.pt") for rank in range(ranks)]
            for name in (*SCENARIOS, "infinite", "bfloat16")
        }
        for strategy, ranks in (("single", 1), ("ddp", 2), ("fsdp", 2))
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_make_the_step_of_one(strategy, scenario, seen):
    (alone,) = seen["single"][scenario]
    for rank in seen[strategy][scenario]:
        for part in ("start", "gradients", "weights"):
            assert rank[part].keys() == alone[part].keys()
            for name, expected in alone[part].items():
                torch.testing.assert_close(rank[part][name], expected, rtol=0, atol=1e-5, msg=name)
        for name in ("train/loss", "train/grad_norm"):
            assert rank["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-5)
        moved = max((alone["weights"][n] - alone["start"][n]).abs().max() for n in alone["start"])
        assert moved > 1e-3  # a hundred times the tolerance


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ddp_reduces_each_gradient_once_per_update(scenario, seen):
    """Whatever the number of micro-batches: most scenarios have two per rank."""
    updates = 2 if scenario in ("normalised", "grpo_two_passes") else 1
    for rank in seen["ddp"][scenario]:
        assert rank["reduced"] == updates * sum(g.numel() for g in rank["gradients"].values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_the_update_in_which_one_has_an_infinite_gradient(strategy, seen):
    for rank in seen[strategy]["infinite"]:
        assert rank["metrics"]["train/skipped_updates"] == 1
        for name, start in rank["start"].items():
            assert torch.equal(rank["weights"][name], start), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_metrics_are_those_of_all_ranks(strategy, seen):
    (alone,), ranks = seen["single"]["grpo"], seen[strategy]["grpo"]
    lengths = torch.tensor([rank["tokens"] for rank in ranks]).flatten().float()
    for rank in ranks:
        metrics = rank["metrics"]
        names = {name for name in metrics if name.startswith(("train/reward", "train/tokens"))}
        names |= {"train/entropy", "train/advantage_abs", "train/frac_zero_advantage"}
        assert names >= {"train/reward_std", "train/reward_accuracy_wrong", "train/tokens_seen"}
        for name in names:
            assert metrics[name] == pytest.approx(alone["metrics"][name], abs=1e-5), name
        assert metrics["train/tokens_p95"] == pytest.approx(lengths.quantile(0.95).item())
        assert metrics["train/questions_seen"] == 4


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_answers_are_those_of_one_process_in_its_order(strategy, seen):
    (alone,) = seen["single"]["grpo"]
    asked = [(row[0], row[2]) for row in alone["answers"] if row[1] == "image"]
    assert asked == [("mri", f"mri-test-0-{i:05d}") for i in range(7)] + [("xray", "xray-test-0-00000")]
    controls = [row[1] for row in alone["answers"] if row[0] == "mri"]
    assert list(dict.fromkeys(controls)) == ["image", "blank", "swapped", "permuted", "reasoning-cut"]
    assert controls.count("swapped") < controls.count("blank") == 7  # some of seven have no partner
    for rank in seen[strategy]["grpo"]:
        assert rank["answers"] == alone["answers"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_decoded_to_different_lengths(strategy, seen):
    """Otherwise nothing above would show that no collective waits inside decoding."""
    first, second = (max(rank["tokens"]) for rank in seen[strategy]["grpo"])
    assert first != second


def test_each_rank_of_fsdp_holds_half_of_every_parameter(seen):
    for scenario in ("grpo", "lora"):
        first, second = (rank["held"] for rank in seen["fsdp"][scenario])
        for name, whole in seen["single"][scenario][0]["start"].items():
            assert first[name] + second[name] == whole.numel(), name
            per_entry = whole.numel() // len(whole)  # split along the first axis, odd ones not in the middle
            assert first[name] == math.ceil(len(whole) / 2) * per_entry, name


def test_each_rank_of_ddp_holds_every_parameter(seen):
    for rank in seen["ddp"]["grpo"]:
        assert rank["held"] == seen["single"]["grpo"][0]["held"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_takes_about_the_step_of_one_process(strategy, seen):
    """Weights in bf16 with fp32 copies; under FSDP the parts themselves are the fp32 copies."""
    (alone,), ranks = seen["single"]["bfloat16"], seen[strategy]["bfloat16"]
    for rank in ranks:
        types = {tensor.dtype for tensor in rank["weights"].values()}
        assert types == {torch.float32 if strategy == "fsdp" else torch.bfloat16}
        for name, expected in alone["gradients"].items():
            ours = rank["gradients"][name].float()
            error = (ours - expected.float()).norm() / expected.float().norm().clamp(min=1e-2)
            assert error < 0.05, name


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_splitting_changes_no_bit_of_the_function_in_bfloat16(one_rank):
    """What samples (whole) and what trains (split) must be the same model, or KL would start above 0."""
    policy = load_policy("embedded", dataclasses.replace(RECIPE, dtype="bfloat16"))
    prompts = [policy.encoder.encode(sample, "train", PROMPT) for sample in list(phantoms(2).train)]
    batch = collate(prompts, policy.pad_id, torch.device("cpu"))
    tokens = torch.randint(5, 600, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        expected = policy.logprobs(batch, tokens, mask)
        policy.shard(one_rank)
        assert {p.dtype for p in policy.trainable_parameters} == {torch.float32}
        assert torch.equal(policy.logprobs(batch, tokens, mask), expected)
    assert {p.dtype for p in policy.sampling_model.parameters()} == {torch.bfloat16}


def test_a_device_without_a_validation_question_is_refused():
    data = VQADataModule(
        dataclasses.replace(phantoms(), validation=[phantoms().validation[0]]), None, 4, 4, seed=0, workers=0
    )
    data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match="1 validation questions are fewer than the 2 devices"):
        data.train_dataloader()


SRUN = """#!/bin/bash
# Two tasks on two machines that are both this one, as Slurm's own srun would start them.
shift  # --kill-on-bad-exit
for task in 0 1; do
    SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 SLURM_STEP_ID=0 "$@" > task-$task.txt 2>&1 &
done
wait -n && wait -n
"""


def test_the_slurm_script_makes_one_run_of_two_machines(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    (tmp_path / "run.py").symlink_to(ROOT / "run.py")
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    overrides = ["model=tiny", "data=phantom", "method=sft", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    overrides += ["data.train.n=16", "data.validation.n=3", "data.test.mri.n=3", "data.test.ct.n=1"]
    overrides += ["data.test.xray.n=2"]
    slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "grpo_600", "SLURM_NODELIST": "localhost"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    try:
        launch(
            ["bash", ROOT / "experiments/real_size/slurm.sh", *overrides],
            tmp_path,
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
            **slurm,
        )
    except AssertionError:
        raise AssertionError("".join(p.read_text()[-2000:] for p in tmp_path.glob("task-*.txt"))) from None
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len([row for row in rows if row["control"] == "image"]) == 6
    assert json.loads((folder / "metrics.json").read_text())["run"]["steps"] == 2


def test_only_the_first_process_writes(tmp_path):
    """The whole road through run.py under FSDP, with a witness for every file opened elsewhere."""
    (tmp_path / "sitecustomize.py").write_text(WATCHER)
    log = tmp_path / "later-ranks.txt"
    overrides = ["data=phantom", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    overrides += ["data.train.n=8", "data.validation.n=3", "data.test.mri.n=3", "data.test.ct.n=1"]
    overrides += ["data.test.xray.n=2", "model.recipe.prompts_per_step=4", "select=best"]
    overrides += ["model.recipe.group_size=4"]
    launch(
        [sys.executable, ROOT / "run.py", "+experiment=grpo_600", "model=tiny", *overrides],
        tmp_path,
        PYTHONPATH=str(tmp_path),
        WATCHER_LOG=str(log),
    )
    # every rank waits for the audit at its lock and keeps a journal of its answers, and writes nothing else
    own = (".json.lock", "predictions-1.journal", "predictions-1.journal.partial")
    assert [line for line in log.read_text().splitlines() if not line.endswith(own)] == []
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len({(row["test_set"], row["control"], row["sample_id"]) for row in rows})
    counts = Counter(row["control"] for row in rows)
    assert counts["image"] == counts["blank"] == counts["permuted"] == counts["reasoning-cut"] == 6
    for name in ("checkpoints/last.ckpt", "model/model.safetensors", "metrics.json", "report.html"):
        assert (folder / name).is_file(), name
    assert sorted(Path(folder / "rollouts").iterdir())
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(type(tensor) is torch.Tensor for tensor in state.values())
