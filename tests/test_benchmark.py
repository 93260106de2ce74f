"""The benchmark beside TRL, on the embedded model: it runs, both sides agree, counts are right."""

import json
import os
import subprocess
import sys

import pytest
from training import ROOT

from medvlm_r1.rollout import sampling_noise
from medvlm_r1.runs.vllm_server import VLLMServerError, check_python, vllm_python

pytest.importorskip("trl", reason="the benchmark compares with TRL: pip install -e '.[dev]'")

PROMPTS, GROUP, PROMPT, NEW = 2, 4, 64, 12  # of --quick
ROWS = PROMPTS * GROUP


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, ROOT / "experiments/speed/benchmark.py", "--quick", "--threads", "1"]
    done = subprocess.run(
        [*command, "--steps", "1", "--json", "result.json", "--chart", "bars.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "bars.png").stat().st_size > 10_000
    return json.loads((folder / "result.json").read_text())


def test_the_sides_agree(results):
    """Far below the tolerances, which are for the real proportions."""
    for differences in results["parity"]["differences"].values():
        assert differences["logprobs"] < 1e-5
        assert differences["ref_logprobs"] < 1e-5
        assert differences["loss"] < 1e-6
        assert differences["grad_norm"] < 1e-5
    assert results["parity"]["differences"]["ours"]["sampled"] < 1e-5


def test_every_row_is_timed_counted_and_weighed(results):
    assert {"ours", "TRL, defaults", "TRL, best settings"} <= results["rows"].keys()
    for row in results["rows"].values():
        seconds = {phase: times["median"] for phase, times in row["seconds"].items()}
        parts = sum(value for phase, value in seconds.items() if phase != "step")
        assert seconds["step"] == pytest.approx(parts)
        assert min(seconds[phase] for phase in ("encode", "sample", "reference", "train", "update")) > 0
        assert row["flops"]["step"] > row["flops"]["train"] > row["flops"]["reference"] > 0
        assert row["memory"]["total"] > row["memory"]["resident"] > 0
    assert {"step", "sample", "train", "peak_memory"} <= results["ratio"].keys()
    assert results["machine"]["versions"]["trl"].startswith("1.16")


def test_the_ratio_is_against_the_better_of_trls_rows(results):
    ours = results["rows"]["ours"]
    theirs = [results["rows"][name] for name in ("TRL, defaults", "TRL, best settings")]
    step = min(row["seconds"]["step"]["median"] for row in theirs)
    assert results["ratio"]["step"] == pytest.approx(step / ours["seconds"]["step"]["median"])
    peak = min(row["memory"]["total"] for row in theirs)
    assert results["ratio"]["peak_memory"] == pytest.approx(ours["memory"]["total"] / peak)


@pytest.mark.parametrize(
    ("name", "passes", "images", "preprocessed"),
    [
        # the prompts are repeated before they are read: every completion's picture, and again in each pass
        ("TRL, defaults", 2, ROWS, 2 * ROWS),
        ("TRL, best settings", 1, ROWS, 2 * ROWS),
    ],
)
def test_counts_of_trl(results, name, passes, images, preprocessed):
    """``passes``: through the layers in training; checkpointing goes through them again."""
    counters = results["rows"][name]["counters"]
    whole = ROWS * (PROMPT + NEW)
    # the last token drawn is never fed back
    assert counters["row_steps"]["sample"] == ROWS * (NEW - 1)
    assert counters["tokens"]["sample"] == ROWS * PROMPT + ROWS * (NEW - 1)
    assert counters["tokens"]["reference"] == whole
    assert counters["tokens"]["train"] == passes * whole
    assert [counters["images"][phase] for phase in ("sample", "reference", "train")] == [images] * 3
    assert counters["preprocessed"] == preprocessed


def test_counts_of_ours(results):
    """A prompt is read once in sampling and once a pass; a frozen tower sees a picture once."""
    counters = results["rows"]["ours"]["counters"]
    assert counters["row_steps"]["sample"] == ROWS * (NEW - 1)
    assert counters["tokens"]["sample"] == PROMPTS * PROMPT + ROWS * (NEW - 1)
    assert counters["tokens"]["reference"] == PROMPTS * PROMPT + ROWS * (NEW - 1)
    assert counters["tokens"]["train"] == PROMPTS * PROMPT + ROWS * (NEW - 1)
    assert counters["preprocessed"] == PROMPTS
    assert counters["images"]["step"] == PROMPTS


def test_counts_of_ours_with_both_switches_off(results):
    """Rows repeat the prompt from the first token on, in the reference engine and in every pass."""
    counters = results["rows"]["ours, both off"]["counters"]
    assert counters["row_steps"]["sample"] == ROWS * (NEW - 1)
    assert counters["tokens"]["sample"] == ROWS * PROMPT + ROWS * (NEW - 1)
    assert counters["tokens"]["reference"] == counters["tokens"]["train"] == ROWS * (PROMPT + NEW)
    assert counters["images"]["step"] == PROMPTS


def test_rows_end_at_the_drawn_lengths_on_both_sides(monkeypatch):
    # what the benchmark changes for its own process is put back for the tests that follow
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sampling_noise, "gumbel_noise", sampling_noise.gumbel_noise)
    import benchmark
    from compare import given_to_all, side_of

    values = dict(zip(("layers", "blocks", "prompts", "group"), benchmark.SIZES["quick"][:4], strict=True))
    size = benchmark.Size(
        model="quick", image_tokens=16, text_tokens=48, new_tokens=NEW, lengths="drawn", dtype="float32",
        tune="lora", beta=0.0, device="cpu", **values,
    )  # fmt: skip
    given = given_to_all(size, 1)
    for name in ("ours", "TRL, best settings"):
        side = side_of(name, size, given)
        side.start(threads=1)
        side.timed_step()
        assert side.computed.mask.sum(1).tolist() == size.row_lengths().tolist()


def test_vllm_samples_as_many_tokens_with_the_trainers_logprobs(tmp_path):
    try:
        check_python(vllm_python())
    except VLLMServerError as error:
        pytest.skip(str(error))
    command = [sys.executable, ROOT / "experiments/speed/engines.py", "--quick", "--threads", "1"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--json", "result.json", "--chart", "bars.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "bars.png").stat().st_size > 5_000
    results = json.loads((tmp_path / "result.json").read_text())
    assert max(results["parity"].values()) < 1e-4
    [cell] = results["cells"]
    assert cell["ratio"] == cell["seconds"]["vLLM"]["median"] / cell["seconds"]["ours"]["median"]
