"""Metrics of the controls, computed by hand."""

import json

import pytest
from run_folders import audit, write_run

from medvlm_r1.data.perturbation import Perturbation
from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate.audit_warnings import audit_warnings, leak_shares, strong_shortcuts
from medvlm_r1.evaluate.control_metrics import summarise_controls, verdict
from medvlm_r1.evaluate.controls import CONTROLS
from medvlm_r1.evaluate.predictions import Prediction, prior_predictions
from medvlm_r1.evaluate.statistics import paired_difference, proportion, wilson
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.tables.controls import control_numbers, control_summary, control_table
from medvlm_r1.report.tables.table import accuracy_table, as_markdown

STYLE = PromptStyle("style", "{Question}<think>", "{Question}<think>")
OPTIONS = ("left kidney", "kidney", "liver")


def sample(number, answer="A", options=OPTIONS):
    return VQASample(f"q{number}", (), "Which?", options, answer, "mri", "k", "s", f"g{number}")


def rows(control, texts, options=OPTIONS, gold="A", **changed):
    """A prediction for each text; ``None`` leaves the question out."""
    return [
        Prediction.from_answer(
            Perturbation(control, sample(i, gold, options), **changed), STYLE.parse(text, sample(i)),
            5, False, "run", 0, "mri",
        )
        for i, text in enumerate(texts)
        if text is not None
    ]  # fmt: skip


def summary(predictions, controls=CONTROLS, audit=None, trained=True):
    return summarise_controls(predictions, controls, {}, audit or {}, trained)["mri"]


def say(letter, thought=None):
    return (f"<think>{thought}</think>" if thought else "") + f"<answer>{letter}</answer>"


class TestNumbers:
    def test_gains_are_paired_on_what_was_asked_under_both(self):
        plain = rows("image", [say("A"), say("A"), say("A"), say("B")])
        swapped = rows("swapped", [say("A"), say("B"), None, say("B")], picture_of="q9")
        metrics = summary(plain + swapped, ("image", "swapped"))
        assert metrics["rates"]["image"]["accuracy"]["value"] == 0.75
        assert (metrics["rates"]["swapped"]["n"], metrics["rates"]["swapped"]["left_out"]) == (3, 1)
        assert metrics["swap_gain"] == paired_difference([1, 1, 0], [1, 0, 0]).as_dict()
        assert "image_gain" not in metrics

    def test_questions_on_one_picture_are_drawn_together(self):
        plain = rows("image", [say("A")] * 4)
        blank = rows("blank", [say("A"), say("B"), say("B"), say("B")])
        alone = summary(plain + blank, ("image", "blank"))
        for row in plain + blank:
            row.image_group = "one" if row.sample_id in ("q1", "q2", "q3") else "other"
        together = summary(plain + blank, ("image", "blank"))
        assert together["image_gain"]["value"] == alone["image_gain"]["value"] == 0.75
        assert (
            together["image_gain"] == paired_difference([1] * 4, [1, 0, 0, 0], ["o", "i", "i", "i"]).as_dict()
        )

    def test_nothing_asked_is_null(self):
        metrics = summary(rows("image", [say("A")] * 4), ("image", "blank", "swapped"))
        assert metrics["rates"]["swapped"]["accuracy"] is None
        assert metrics["rates"]["swapped"]["left_out"] == 4
        assert metrics["image_gain"] is metrics["swap_gain"] is metrics["reasoning_contradicts"] is None
        assert "not known" in metrics["verdict"]

    def test_the_same_text_under_another_letter_is_consistent(self):
        moved = ("liver", "left kidney", "kidney")
        plain = rows("image", [say("A"), say("A"), say("B"), "no answer"])
        again = rows("permuted", [say("B"), say("A"), say("C"), say("B")], moved, "B", order=(2, 0, 1))
        consistent = summary(plain + again, ("image", "permuted"))["order_consistency"]
        assert (consistent["value"], consistent["n"]) == (pytest.approx(2 / 3), 3)

    @pytest.mark.parametrize(
        ("thought", "counted", "contradicts"),
        [
            ("it is the Left Kidney, so", True, False),  # which holds "kidney" too
            ("the kidney is dark", True, True),
            ("not the liver but the kidney", False, None),
            ("bright and round", False, None),
            ("left-kidneys", False, None),
            ("there is no kidney here", False, None),
            ("the kidney can be ruled out", False, None),
            (None, False, None),
        ],
        ids=str,
    )
    def test_reasoning_contradicts_where_it_names_another_option(self, thought, counted, contradicts):
        metrics = summary(rows("image", [say("A", thought)] * 4), ("image",))["reasoning_contradicts"]
        assert (metrics is not None) == counted
        if counted:
            assert (metrics["value"], metrics["n"]) == (float(contradicts), 4)

    def test_the_word_no_is_not_the_option(self):
        asked = rows("image", [say("A", "no doubt, there is a mass")] * 4, ("Yes", "No"))
        assert summary(asked, ("image",))["reasoning_contradicts"] is None

    def test_an_unread_letter_contradicts_nothing(self):
        assert (
            summary(rows("image", ["<think>liver</think>"] * 4), ("image",))["reasoning_contradicts"] is None
        )

    def test_the_prior_by_hand(self):
        """Liver was gold in two of its three showings, left kidney in one of three: liver is guessed."""
        train = [sample(10, "C"), sample(11, "C"), sample(12, "A")]
        tests = {"mri": [sample(0, "C"), sample(1, "A"), sample(2, "C"), sample(3, "C", ("x", "y", "z"))]}
        plain = rows("image", [say("C"), say("C"), say("A"), say("C")], gold="C")
        prior = prior_predictions(train, tests, "run", 0)
        assert [row.answer for row in prior] == ["C", "C", "C", None]
        assert [row.correct for row in prior] == [True, False, True, pytest.approx(1 / 3)]
        metrics = summary(plain + prior, ("image", "prior"))
        assert metrics["rates"]["prior"]["accuracy"]["value"] == pytest.approx((1 + 0 + 1 + 1 / 3) / 4)
        assert metrics["prior_gain"]["value"] == pytest.approx(0.75 - (2 + 1 / 3) / 4)

    def test_guessing_everywhere_has_the_interval_of_guesses(self):
        metrics = proportion([0.25] * 100)
        assert (metrics.value, metrics.low, metrics.high) == (0.25, wilson(25, 100).low, wilson(25, 100).high)
        grouped = proportion([0.0, 1.0, 0.5, 0.5] * 5, list("aabb") * 5)
        assert grouped.value == 0.5
        assert grouped.method == "cluster bootstrap"


class TestWords:
    @pytest.mark.parametrize(
        ("ends", "words"),
        [
            ((0.383, 0.321, 0.445), "image gain +38.3 points (32.1 to 44.5): the image is used"),
            (
                (0.007, -0.031, 0.042),
                "image gain +0.7 points (−3.1 to 4.2), interval includes zero: "  # noqa: RUF001
                "no evidence that the image is used",
            ),
            ((0.0, 0.0, 0.0), "image gain 0.0 points (0.0 to 0.0), interval includes zero: no evidence "
             "that the image is used"),
            ((-0.2, -0.3, -0.1), "image gain −20.0 points (−30.0 to −10.0): better without the image"),  # noqa: RUF001
        ],
        ids=["used", "unsure", "none", "misled"],
    )  # fmt: skip
    def test_the_verdict(self, ends, words):
        value, low, high = ends
        assert verdict({"value": value, "low": low, "high": high, "n": 300, "method": "m"}) == words


SHORTCUT = {"option text": {"accuracy": 0.96, "chance": 0.27, "n": 60}}


def planted(copies=18, given=True):
    metrics = audit(copies)
    if given:
        metrics["shortcuts"]["ct"] |= SHORTCUT
    return metrics


class TestLabels:
    def test_say_what_touches_a_test_set(self):
        assert audit_warnings(planted(), True, "mri") == [
            "30.0 % of the questions show a copy of a training image"
        ]
        warnings = ["option text alone scores 96.0 % without looking (chance 27.0)"]
        assert audit_warnings(planted(), True, "ct") == audit_warnings(planted(), False, "ct") == warnings
        assert audit_warnings(planted(), True, "xray") == audit_warnings({}, True, "mri") == []

    def test_a_leak_touches_what_was_trained_on_it(self):
        assert leak_shares(planted(), trained=True) == {"mri": 0.3}
        assert (
            leak_shares(planted(), trained=False)
            == leak_shares(planted() | {"dropped": 3}, trained=True)
            == {}
        )

    def test_a_shortcut_is_one_that_stands_out(self):
        assert list(strong_shortcuts(planted())) == ["ct"]
        assert strong_shortcuts(audit()) == {}

    def test_stand_beside_the_numbers_in_the_summary(self):
        plain = rows("image", [say("A")] * 4)
        assert summary(plain, ("image",), audit=planted())["labels"] == audit_warnings(planted(), True, "mri")
        assert summary(plain, ("image",), audit=planted(), trained=False)["labels"] == []


def with_sections(folder, metrics, controls=None):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audit": metrics, "controls": controls or {}}))
    return folder


class TestTables:
    def test_every_number_that_is_touched_is_marked(self, tmp_path):
        interval = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 60, "method": "wilson"}
        section = {
            name: {
                "rates": {"prior": {"accuracy": interval, "n": 60, "left_out": 0}},
                "prior_gain": interval,
                "order_consistency": interval,
                "not_run": {"reasoning-cut": "the prompt asks for no reasoning"},
            }
            for name in ("mri", "ct", "xray")
        }
        c = compare([with_sections(write_run(tmp_path, "grpo"), planted(), section)])
        table = control_table(c)
        measured = [row[0].text for row in table.rows]
        assert measured == ["image", "blank", "prior", "image gain", "gain over the prior",
                            "same option in both orders"]  # fmt: skip
        for _, mri, ct, xray in table.rows:
            assert (mri.text[-1], ct.text[-1]) == ("†", "‡")
            assert xray.text[-1].isdigit()
        assert table.notes[-2] == "† 30.0 % of the MRI questions show a copy of a training image."
        assert table.notes[-1] == (
            "‡ Without the image, option text alone scores 96.0 % on CT (chance 27.0)."
        )
        assert "reasoning-cut was not run: the prompt asks for no reasoning." in table.notes
        assert all("†" in row[1].text for row in control_summary(c).rows[:1])
        accuracy = accuracy_table(c).rows[0]
        assert [cell.text[-1] for cell in accuracy[1:4]] == ["†", "‡", accuracy[3].text[-1]]
        assert accuracy[-3].text.endswith("†‡")  # the mean of all

    def test_a_zero_shot_run_is_touched_by_a_shortcut_alone(self, tmp_path):
        c = compare([with_sections(write_run(tmp_path, "zero_shot"), planted())])
        text = as_markdown(control_table(c)) + as_markdown(accuracy_table(c))
        assert "‡" in text
        assert "†" not in text

    def test_numbers_are_those_of_the_answers(self, tmp_path):
        c = compare([write_run(tmp_path, "grpo"), write_run(tmp_path, "grpo", seed=1)])
        table = control_table(c)
        image, blank, gain = (row[1] for row in table.rows)
        mri = [
            [run.answers("mri", k)["correct"].mean() for run in c.groups[0].runs] for k in ("image", "blank")
        ]
        means = [100 * sum(rates) / 2 for rates in mri]
        assert (image.text, blank.text) == (f"{means[0]:.1f}", f"{means[1]:.1f}")
        assert gain.text == f"{means[0] - means[1]:+.1f}"
        assert gain.note.endswith("; the image is used")
        figures = control_numbers(c)["GRPO"]["mri"]
        assert figures["accuracy"].keys() == {"image", "blank"}
        assert 100 * figures["image_gain"]["value"] == pytest.approx(means[0] - means[1])
        summary = control_summary(c).rows[0]
        assert [cell.text for cell in summary[:3]] == ["MRI", image.text, blank.text]
        assert summary[3].text.startswith(gain.text)

    def test_answers_out_of_tags_are_counted_under_each_control(self, tmp_path):
        folder = write_run(tmp_path, "grpo", n=40)
        path = folder / "predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for k, row in enumerate(rows):
            row["answered"] = row["control"] == "image" or k % 8 > 1
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        image, blank = (row[1].note for row in control_table(compare([folder])).rows[:2])
        assert "in tags" not in image
        assert blank.endswith("75.0 in tags")

    def test_several_methods_stand_below_each_other(self, tmp_path):
        for method in ("zero_shot", "grpo"):
            write_run(tmp_path, method)
        c = compare([tmp_path])
        heads = [(row[0].text, row[0].note) for row in control_table(c).rows]
        measures = ["image", "blank", "image gain"]
        assert heads == [(label, name) for label in ("Zero-shot", "GRPO") for name in measures]
        assert [row[0].text for row in control_summary(c).rows][:2] == ["Zero-shot, MRI", "Zero-shot, CT"]

    def test_without_controls_there_is_no_table(self, tmp_path):
        folder = write_run(tmp_path, "sft")
        path = folder / "predictions.jsonl"
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["control"] == "image"]
        path.write_text("\n".join(lines) + "\n")
        c = compare([folder])
        assert control_table(c) is control_summary(c) is None
