"""Verdicts state the facts of the run folders in sentences, and link to the evidence."""

import json
import re

import pytest
from run_folders import audit, write_run, write_sweep

from medvlm_r1.evaluate.controls import BLANK
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.page.render import write_comparison_report
from medvlm_r1.report.page.verdicts import find_verdicts
from medvlm_r1.report.tables.controls import gain_over

pytestmark = pytest.mark.usefixtures("few_draws")


def edit_metrics(folder, audit):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audit": audit}))


def edit_lines(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for r in rows if (row := change(r))))


def verdict_texts(folder, topic):
    c = compare([folder])
    return [(v.level, v.text) for v in find_verdicts(c, c.groups[-1]) if v.topic == topic]


def test_a_clean_run_is_cleared(tmp_path):
    folder = write_run(tmp_path, "grpo")
    (folder / "alarms.jsonl").unlink()
    assert verdict_texts(folder, "Leaks") == [("clear", "No test image is a copy of a training image.")]
    assert verdict_texts(folder, "Shortcuts") == [
        ("clear", "No rule that ignores the image is clearly above chance.")
    ]
    assert verdict_texts(folder, "Alarms") == [("clear", "No alarm during training.")]


def test_a_leak_is_a_warning_for_what_was_trained_alone(tmp_path):
    for method in ("zero_shot", "grpo"):
        edit_metrics(write_run(tmp_path, method), audit(copies=18))
    assert verdict_texts(tmp_path / "grpo_600-seed0", "Leaks") == [
        ("warning", "30.0 % of MRI shows a copy of a training image.")
    ]
    assert verdict_texts(tmp_path / "zero_shot-seed0", "Leaks") == []


def test_a_patient_in_training_and_test_is_a_warning(tmp_path):
    folder = write_run(tmp_path, "grpo")
    found = audit()
    found["leaks"] = [leak | {"same_group": leak["n"] // 2} for leak in found["leaks"]]
    assert {leak["source"] for leak in found["leaks"]} == {"train"}
    edit_metrics(folder, found)
    ((level, text),) = verdict_texts(folder, "Leaks")
    assert level == "warning"
    assert "50.0 % of MRI" in text
    assert text.endswith("shows another image of a training group (patient).")


def test_dropped_questions_and_unchecked_pixels_are_named(tmp_path):
    folder = write_run(tmp_path, "grpo")
    edit_metrics(folder, audit(copies=18) | {"dropped": 9})
    assert verdict_texts(folder, "Leaks") == [
        ("clear", "9 training questions were dropped: they showed test images.")
    ]
    edit_metrics(folder, audit() | {"images": 60, "images_checked": 0})
    assert verdict_texts(folder, "Leaks") == [("note", "Pixels of 0 of 60 images were checked for copies.")]
    edit_metrics(folder, {})
    assert verdict_texts(folder, "Leaks") == [("note", "The data was not audited for leaks and shortcuts.")]
    assert verdict_texts(folder, "Shortcuts") == []


def test_a_shortcut_that_stands_out_is_a_warning(tmp_path):
    folder, found = write_run(tmp_path, "sft"), audit()
    found["shortcuts"]["mri"]["option text"] = {"accuracy": 0.94, "chance": 0.27, "n": 60}
    edit_metrics(folder, found)
    assert verdict_texts(folder, "Shortcuts") == [
        ("warning", "Without the image, option text alone answers 94.0 % of MRI (chance 27.0).")
    ]


def test_alarms_name_step_and_seed(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "grpo", seed, n=8)
    assert verdict_texts(tmp_path / "grpo_600-seed0", "Alarms") == [("warning", "Zero advantage at step 31.")]
    ((_, text),) = verdict_texts(tmp_path, "Alarms")
    assert text == "Zero advantage at step 31 of seed 0, zero advantage at step 31 of seed 1."


def test_the_gain_from_the_image_is_that_of_paired_answers(tmp_path):
    folder = write_run(tmp_path, "grpo")
    row = compare([folder]).groups[0]
    gain = gain_over(row, "mri", BLANK)
    assert gain.value == pytest.approx(row.rate(["mri"]).value - row.rate(["mri"], control="blank").value)
    assert gain.low <= gain.value <= gain.high
    ((level, text),) = verdict_texts(folder, "Image use")
    assert level == "clear"
    assert text.startswith(f"The image adds +{100 * gain.value:.1f} points on MRI")


def test_a_model_that_does_not_use_the_image_gets_a_warning(tmp_path):
    folder = write_run(tmp_path, "sft")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    plain = {(r["test_set"], r["sample_id"]): r for r in rows if r["control"] == "image"}
    same = [plain[r["test_set"], r["sample_id"]] | {"control": r["control"]} for r in rows]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in same))
    ((level, text),) = verdict_texts(folder, "Image use")
    assert level == "warning"
    assert text.startswith("No gain over a blank image is shown: ")
    assert "0.0 points on CT" in text


def test_without_a_blank_control_the_use_of_the_image_is_unknown(tmp_path):
    folder = write_run(tmp_path, "sft", n=8)
    edit_lines(folder / "predictions.jsonl", lambda r: r if r["control"] == "image" else None)
    ((level, text),) = verdict_texts(folder, "Image use")
    assert (level, text.endswith("unknown.")) == ("note", True)


def test_answers_that_cannot_be_parsed_are_linked(tmp_path):
    folder = write_run(tmp_path, "zero_shot", n=60)
    c = compare([folder])
    (found,) = [v for v in find_verdicts(c, c.groups[0]) if v.topic == "Format"]
    assert found.level == "note"
    assert found.target == "traces?view=test&outcome=unparsed&run=zero_shot-seed0"
    assert not [v for v in find_verdicts(c, c.groups[0]) if v.topic == "Length"]


def test_warnings_come_first_and_every_link_leads_somewhere(tmp_path):
    c = compare([write_sweep(tmp_path, n=20)])
    for row in c.groups:
        levels = [v.level for v in find_verdicts(c, row)]
        assert levels == sorted(levels, key=("warning", "note", "clear").index)
    page = write_comparison_report([tmp_path], tmp_path).read_text()
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    targets = {link.split("?")[0] for link in re.findall(r'href="#([^"]+)"', page)}
    assert targets >= {"alarms", "traces", "audit", "shortcuts", "controls"}
    assert targets <= ids
