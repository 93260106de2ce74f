"""The data of the trace browser: everything that the runs wrote, thinned only above a limit."""

import base64
import gzip
import json

import pandas as pd
import pytest
from run_folders import write_run, write_sweep

from medvlm_r1.report.comparison import compare
from medvlm_r1.report.run_folder import read_run
from medvlm_r1.report.traces import pack
from medvlm_r1.report.traces.pack import NOTHING, pack_traces

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "main", seeds=2, n=20)


def unpacked(traces):
    return json.loads(gzip.decompress(base64.b64decode(traces.packed)))


def edit_lines(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_every_answer_is_packed_with_its_question(sweep):
    traces = pack_traces(compare([sweep]))
    data = unpacked(traces)
    tests, text_of = data["tests"], data["texts"].__getitem__
    assert traces.answers == len(tests["id"]) == 3 * 20 * 2  # test sets, questions, controls
    assert traces.left_out == []
    labels = [run["label"] for run in data["runs"]]
    assert labels[:3] == ["Zero-shot, seed 0", "Zero-shot, seed 1", "SFT, seed 0"]
    for columns in tests["answers"]:
        run = read_run(sweep / data["runs"][columns["run"]]["name"])
        rows = run.predictions.set_index(["test_set", "control", "sample_id"])
        for k in range(traces.answers):
            row = rows.loc[tuple(text_of(tests[c][k]) for c in ("set", "control", "id"))]
            assert text_of(columns["text"][k]) == row["text"]
            assert columns["right"][k] == row["correct"]
            assert text_of(tests["question"][k]) == row["question"]
            assert [text_of(o) for o in tests["options"][k]] == row["options"]
            read = None if columns["answer"][k] == NOTHING else text_of(columns["answer"][k])
            assert read == (None if pd.isna(row["answer"]) else row["answer"])


def test_every_completion_is_packed_with_its_rewards(sweep):
    data = unpacked(pack_traces(compare([sweep])))
    groups, completions, text_of = data["groups"], data["groups"]["completions"], data["texts"].__getitem__
    assert len(groups["id"]) == 2 * 4 * 2  # GRPO runs, traced steps, prompts
    for g in range(len(groups["id"])):
        rows = read_run(sweep / data["runs"][groups["run"][g]]["name"]).rollouts(groups["step"][g])
        rows = [row for row in rows if row["sample_id"] == text_of(groups["id"][g])]
        assert groups["count"][g] == len(rows) == 8
        for at, row in enumerate(rows, groups["first"][g]):
            assert text_of(completions["text"][at]) == row["text"]
            assert {t: v[at] for t, v in completions["rewards"].items()} == row["rewards"]
            assert completions["total"][at] == pytest.approx(row["total"], abs=1e-4)
            assert completions["advantage"][at] == pytest.approx(row["advantage"], abs=1e-4)
            assert (completions["tokens"][at], completions["truncated"][at]) == (
                row["tokens"],
                row["truncated"],
            )


def test_a_text_that_occurs_often_is_held_once(sweep):
    texts = unpacked(pack_traces(compare([sweep])))["texts"]
    assert len(texts) == len(set(texts))


def test_a_control_of_one_run_alone_leaves_gaps_in_the_others(tmp_path):
    folder = write_run(tmp_path, "sft", n=6)
    other = {"image": "image", "blank": "swapped"}
    edit_lines(folder / "predictions.jsonl", lambda r: r | {"control": other[r["control"]]})
    write_run(tmp_path, "grpo", n=6)
    tests = unpacked(pack_traces(compare([tmp_path])))["tests"]
    assert len(tests["id"]) == 3 * 6 * 3
    for columns in tests["answers"]:
        assert sum(right == NOTHING for right in columns["right"]) == 18
        assert [t == NOTHING for t in columns["text"]] == [r == NOTHING for r in columns["right"]]


def as_prior(row):
    """The blank control's rows as the text prior has them: sure of the first test set, torn in the others."""
    if row["control"] != "blank":
        return row
    torn = {"correct": 0.5, "correct_lenient": 0.5, "answer": None} if row["test_set"] != "mri" else {}
    return row | {"control": "prior", "text": ""} | torn


def test_a_prior_that_cannot_decide_is_neither_right_nor_wrong(tmp_path):
    folder = write_run(tmp_path, "grpo", n=6)
    edit_lines(folder / "predictions.jsonl", as_prior)
    data = unpacked(pack_traces(compare([folder])))
    text_of, tests = data["texts"].__getitem__, data["tests"]
    marks = {
        (text_of(name), mark)
        for name, control, mark in zip(
            tests["set"], tests["control"], tests["answers"][0]["right"], strict=True
        )
        if text_of(control) == "prior"
    }
    assert {mark for name, mark in marks if name == "mri"} <= {0, 1}
    assert {mark for name, mark in marks if name != "mri"} == {0.5}


def test_an_earlier_evaluation_is_a_reply_of_its_own(tmp_path):
    folder = write_run(tmp_path, "grpo", n=6)
    path = folder / "predictions.jsonl"
    early = [json.loads(line) | {"step": 1, "correct": False} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in early) + path.read_text())
    replies = unpacked(pack_traces(compare([folder])))["tests"]["answers"]
    assert [r["name"] for r in replies] == ["grpo_600-seed0 at step 1", "grpo_600-seed0 at step 75"]
    assert set(replies[0]["right"]) == {0}
    assert pack.answer_set_name(read_run(folder)) == "grpo_600-seed0 at step 75"


def test_options_in_another_order_are_kept_with_the_reply(tmp_path):
    write_run(tmp_path, "sft", n=4)
    folder = write_run(tmp_path, "grpo", n=4)
    turn = lambda r: r | ({"options": r["options"][::-1]} if r["control"] == "blank" else {})  # noqa: E731
    edit_lines(folder / "predictions.jsonl", turn)
    data = unpacked(pack_traces(compare([tmp_path])))
    sft, grpo = data["tests"]["answers"]
    assert set(sft["options"]) == {0}
    for k, control in enumerate(data["tests"]["control"]):
        own = 0 if data["texts"][control] == "image" else data["tests"]["options"][k][::-1]
        assert grpo["options"][k] == own


def test_where_a_control_showed_another_picture_that_one_is_shown(tmp_path):
    folder = write_run(tmp_path, "grpo", n=4)
    swap = {"control": "swapped", "picture_of": "mri-0001"}
    edit_lines(folder / "predictions.jsonl", lambda r: r | swap if r["control"] == "blank" else r)
    data = unpacked(pack_traces(compare([folder])))
    tests, text_of = data["tests"], data["texts"].__getitem__
    rows = {
        (text_of(c), text_of(n)): k
        for k, (c, n) in enumerate(zip(tests["control"], tests["id"], strict=True))
    }
    plain, swapped, other = (
        rows[key] for key in (("image", "mri-0000"), ("swapped", "mri-0000"), ("image", "mri-0001"))
    )
    assert (text_of(tests["seen"][plain]), text_of(tests["seen"][swapped])) == ("mri-0000", "mri-0001")
    assert tests["picture"][swapped] == tests["picture"][other] != tests["picture"][plain]


def test_beyond_the_bound_steps_and_questions_are_thinned_and_the_page_names_it(sweep, monkeypatch):
    monkeypatch.setattr(pack, "LARGEST_FILES", 60_000)
    traces = pack_traces(compare([sweep]))
    data = unpacked(traces)
    groups, tests = data["groups"], data["tests"]
    for run in set(groups["run"]):
        steps = [s for r, s in zip(groups["run"], groups["step"], strict=True) if r == run]
        assert steps[0] == 1
        assert steps[-1] == 75
    assert 0 < len(set(tests["id"])) < 60
    assert all(right != NOTHING for columns in tests["answers"] for right in columns["right"])
    assert f"Of 60 test questions {len(set(tests['id']))} are here" in traces.left_out[0]


def test_training_steps_are_thinned_evenly(sweep, monkeypatch):
    size = sum(p.stat().st_size for p in sweep.glob("*/rollouts/*"))
    monkeypatch.setattr(pack, "LARGEST_FILES", size // 3 + 1)
    traces = pack_traces(compare([sweep]))
    assert sorted(set(unpacked(traces)["groups"]["step"])) == [1, 75]  # of 1, 25, 50, 75
    assert any("One training step in 3 is here" in line for line in traces.left_out)


def test_pictures_beyond_the_bound_are_left_out_and_the_page_names_it(sweep, monkeypatch):
    whole = pack_traces(compare([sweep]))
    assert len(whole.images) == len(set(whole.images)) > 10
    room = sum(map(len, whole.images[:5]))
    monkeypatch.setattr(pack, "LARGEST_IMAGES", room)
    some = pack_traces(compare([sweep]))
    assert 0 < sum(map(len, some.images)) <= room
    assert f"{len(whole.images) - len(some.images)} saved images are left out" in some.left_out[-1]


def test_a_reward_that_is_not_finite_does_not_break_the_page(tmp_path):
    folder = write_run(tmp_path, "grpo", n=6)
    broken = {"total": float("nan"), "advantage": float("inf")}
    edit_lines(folder / "rollouts" / "step-1.jsonl", lambda r: r | broken)
    completions = unpacked(pack_traces(compare([folder])))["groups"]["completions"]
    assert completions["total"][0] is None
    assert completions["advantage"][0] is None


def test_the_same_runs_give_the_same_bytes(sweep):
    assert pack_traces(compare([sweep])).packed == pack_traces(compare([sweep])).packed
