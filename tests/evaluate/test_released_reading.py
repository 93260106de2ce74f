"""``evaluation.reading=released``: the papers' own accuracy in predictions, metrics and tables."""

import json

import pytest
from command import run_here
from omegaconf import OmegaConf
from run_folders import write_run

from medvlm_r1.cli.compare import main as compare_command
from medvlm_r1.data.perturbation import Perturbation
from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate.predictions import Prediction, add_released, prior_predictions, summarise
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.reading.released import RULES, check_reading
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.tables.table import accuracy_table
from medvlm_r1.runs.places import CONF

STYLE = PromptStyle("style", "{Question}", "{Question}", open="{Question}")
TEXTS = (
    "<answer>A</answer>",
    "<answer>a</answer>",
    "A",
    "<think>x</think><answer>A</answer>",
    "A.",
    "<answer>B</answer>",
)
SHORT = ("data.test.mri.n=8", "~data.test.ct", "~data.test.xray", "data.validation.n=8", "controls=[image]")


def rows(texts=TEXTS, options=("liver", "kidney"), gold="A"):
    samples = [
        VQASample(f"q{i}", (), "Which?", options, gold, "mri", "k", "s", f"q{i}") for i in range(len(texts))
    ]
    return [
        Prediction.from_answer(Perturbation("image", s), STYLE.parse(text, s), 5, False, "run", 0, "mri")
        for s, text in zip(samples, texts, strict=True)
    ]


@pytest.mark.parametrize(
    ("prompt", "right"),
    [
        ("medvlm_r1", [True, False, False, True, False, False]),
        ("med_r1", [True, False, False, True, False, False]),
        ("med_r1_no_think", [False, False, True, False, False, False]),
        ("medvlm_r1_simple", [False, False, True, False, False, False]),
    ],
)
def test_each_prompt_has_its_papers_rule(prompt, right):
    scored = add_released(rows(), "released", prompt)
    assert [row.correct_released for row in scored] == right
    section = summarise(scored)["accuracy_released"]["mri"]
    assert (section["value"], section["n"]) == (pytest.approx(sum(right) / 6), 6)
    assert [row.correct for row in scored] == [row.correct for row in rows()]  # ours stays


def test_by_default_nothing_is_added():
    scored = add_released(rows(), "strict", "open")
    assert {row.correct_released for row in scored} == {None}
    assert "accuracy_released" not in summarise(scored)


def test_open_questions_and_the_prior_have_no_released_reading():
    texts = rows(("<answer>left lung</answer>",), (), "left lung")
    closed = [VQASample("q", (), "Which?", ("liver", "kidney"), "A", "mri", "k", "s", "q")]
    prior = prior_predictions(closed, {"mri": closed}, "run", 0)
    scored = add_released([*texts, *prior, *rows(TEXTS[:1])], "released", "medvlm_r1")
    assert [row.correct_released for row in scored] == [None, None, True]
    assert summarise(scored)["accuracy_released"]["mri"]["n"] == 1


def test_every_paper_prompt_of_conf_has_a_rule():
    """The remedy of the error names options of conf/prompt; the others have no paper."""
    names = {OmegaConf.load(path).name for path in (CONF / "prompt").glob("*.yaml")}
    assert names - set(RULES) == {"open"}
    assert set(RULES) <= names


@pytest.mark.parametrize(
    ("reading", "prompt", "message"),
    [
        (
            "released",
            "open",
            r"released: no paper released an evaluation of prompt 'open': use .*strict, or one",
        ),
        ("released", "x" * 5000, r"use evaluation.reading=strict"),
        ("paper", "medvlm_r1", r"evaluation.reading is 'paper': use strict or released"),
        (None, "medvlm_r1", r"evaluation.reading is None: use strict or released"),
    ],
    ids=["no paper", "long", "unknown", "none"],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_refused(reading, prompt, message):
    with pytest.raises(ValueError, match=message) as error:
        check_reading(reading, prompt)
    assert len(str(error.value)) < 400


def test_a_prompt_without_paper_stops_the_run_before_the_weights(tmp_path):
    arguments = ("model.path=nowhere/at/all", "prompt=open", "evaluation.reading=released")
    stderr = run_here(tmp_path, *arguments, code=2).stderr
    assert "error: evaluation.reading=released: no paper released an evaluation of prompt 'open'" in stderr


def test_a_run_has_the_papers_accuracy(tmp_path):
    run_here(tmp_path, "method=zero_shot", "prompt=med_r1_no_think", "evaluation.reading=released", *SHORT)
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {row["correct_released"] for row in answers} <= {True, False}
    assert [row["correct_released"] for row in answers] == [row["text"] == row["gold"] for row in answers]
    assert json.loads((folder / "metrics.json").read_text())["accuracy_released"]["mri"]["n"] == 8
    table = accuracy_table(compare([folder]))
    assert [row[0].note for row in table.rows if "released" in row[0].note] == [
        "by the paper's released code"
    ]


def score_released(folder):
    """Add the released reading to a run folder; every third answer is right by it."""
    path = folder / "predictions.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(answers):
        row["correct_released"] = i % 3 == 0
    path.write_text("".join(json.dumps(row) + "\n" for row in answers))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["accuracy_released"] = metrics["accuracy"]
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.usefixtures("few_draws")
def test_the_tables_have_a_row_for_the_runs_that_are_scored_so(tmp_path):
    score_released(write_run(tmp_path, "grpo", n=20, changes={"evaluation": {"reading": "released"}}))
    write_run(tmp_path, "sft", n=20)
    c = compare([tmp_path])
    assert [f.differences for f in c.fairness] == [()]  # a reading is no setting of training
    notes = [(row[0].text, row[0].note) for row in accuracy_table(c).rows]
    assert notes[2] == ("GRPO", "by the paper's released code")
    assert len([note for _, note in notes if "released" in note]) == 1
    assert set(c.released) == set(c.as_dict()["accuracy_released"]) == {"GRPO"}
    compare_command([str(tmp_path), "--out", str(tmp_path / "out")])
    for file in ("comparison.md", "comparison.tex", "comparison.csv", "comparison.json"):
        assert "released" in (tmp_path / "out" / file).read_text()
