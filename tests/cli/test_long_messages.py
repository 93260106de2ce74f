"""However much a command line or a file holds, an error is short, and its exit code is 2."""

import json

import pytest
from command import run_here

from medvlm_r1.cli import compare, export, main, matrix, predict, sweep

MEGABYTE = "x" * 1_000_000
ARGUMENT = "x" * 130_000  # a longer one does not reach a process on Linux
RUN = ["model=tiny", "data=phantom"]


@pytest.mark.parametrize(
    "typed",
    [
        "seed={}",
        "method.beta={}",
        "method.loss.clip_low=[{}]",
        "trainer.devices={}",
        "trainer.precision={}",
        "trainer.max_steps={}",
        "+trainer.max_time={}",
        "+trainer.{}=1",
        "method.{}=1",
        "{}=1",
        "{}",
        "+{}.y=1",
        "method={}",
        "experiment={}",
        "model.path={}",
        "model._target_=medvlm_r1.{}",
        "model._target_={}.y",
        "data=table data.train={} data.test=a.json",
        "data=table data.train=a.json data.test={{ct:{}}}",
        "data.train.modality={}",
        "paths.outputs={}",
        "select={}",
        "resume={}",
        "ckpt_path={}",
        "optimized_metric={}",
        "callbacks.best.monitor={}",
        "controls=[{}]",
        "track=[{}]",
        "tags={}",
        "evaluation.reading={}",
        "plan=true card={}",
        "method.name=a={}",
        "data.train.modality={}~",
        "--config-dir={}",
        "--{}",
        "-m method={} sweep=a",
        "hydra/launcher={}",
        "method.optim.lr=${{{}}}",
    ],
)
def test_an_error_of_a_run_is_short(typed, tmp_path):
    arguments = [part.format(ARGUMENT) for part in typed.split(" ")]
    printed = run_here(tmp_path, *RUN, *arguments, code=2).stderr
    assert printed.startswith("error: ")
    assert len(printed) < 2000
    assert "Traceback" not in printed


@pytest.mark.parametrize("field", ["question", "answer", "options", "image", "modality", "group", "id"])
def test_an_error_of_a_row_is_short(field, tmp_path):
    row = {"image": ["none.png"], "question": "q", "options": ["a", "b"], "answer": "c", "modality": "ct"}
    row[field] = [MEGABYTE] if field in ("image", "options") else MEGABYTE
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    for data in ("mcq_json", "table"):
        arguments = [f"data={data}", "data.train=rows.json", "data.test={ct:rows.json}"]
        printed = run_here(tmp_path, "model=tiny", *arguments, code=2).stderr
        assert len(printed) < 2000
        assert "rows.json" in printed


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (compare.main, ["{}"]),
        (compare.main, ["a", "{}"]),
        (compare.main, ["a", "--{}"]),
        (sweep.main, ["{}"]),
        (matrix.main, ["{}"]),
        (export.main, ["{}"]),
        (export.main, ["a", "--dtype", "{}"]),
        (predict.main, ["--model", "{}", "--image", "a.png", "--question", "q"]),
        (predict.main, ["--model", "embedded", "--image", "{}", "--question", "q"]),
        (predict.main, ["--model", "embedded", "--questions", "{}", "--out", "b"]),
        (predict.main, ["--model", "embedded", "--image", "a", "--question", "q", "--prompt", "{}"]),
        (predict.main, ["--model", "embedded", "--image", "a", "--question", "q", "--recipe", "{}"]),
        (predict.main, ["--model", "embedded", "--image", "a", "--question", "q", "--device", "{}"]),
        (predict.main, ["--model", "embedded", "--batch", "{}"]),
        (predict.main, ["--model", "embedded", "{}"]),
        (predict.main, ["--model", "http://{}", "--image", "a", "--question", "q"]),
        (main.main, ["{}"]),
    ],
)
def test_an_error_of_a_command_is_short(command, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = command([part.format(MEGABYTE) for part in arguments])
    except SystemExit as stopped:  # of argparse
        code = stopped.code
    printed = capsys.readouterr().err
    assert code == 2
    assert len(printed) < 2000
