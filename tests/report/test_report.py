"""Run folders are read, compared, and shown on the page."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from run_folders import audit, write_run, write_sweep

from medvlm_r1.report.comparison import MEAN, OUTSIDE, compare
from medvlm_r1.report.fairness import compare_settings
from medvlm_r1.report.figures import comparison_figure, curve_panels, dot_panels
from medvlm_r1.report.groups import UnpairedError
from medvlm_r1.report.methods import method_order, method_title
from medvlm_r1.report.page import examples
from medvlm_r1.report.page.headline import headline
from medvlm_r1.report.page.render import clock, mark_tags, write_comparison_report, write_run_report
from medvlm_r1.report.run_folder import RunFolderError, find_runs, read_run
from medvlm_r1.report.tables.table import accuracy_table, as_markdown, difference_table, percent

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "main")


@pytest.fixture(scope="module")
def comparison(sweep):
    return compare([sweep])


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on an element that is closed wrongly."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def edit_lines(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_a_run_is_read_in_full(sweep):
    run = read_run(sweep / "grpo_600-seed0")
    assert (run.method, run.seed, run.test_sets) == ("grpo", 0, ["mri", "ct", "xray"])
    assert run.trained_on == run.in_domain == ["mri"]
    assert run.controls == ["image", "blank"]
    assert run.traced_steps == [1, 25, 50, 75]
    assert run.command.startswith("python run.py +experiment=grpo_600")
    assert len(run.curve("validation/accuracy")) == 7  # sparse rows: every tenth of 75 steps
    assert run.curve("train/nothing").empty
    rows = run.answers("ct")
    assert list(rows.index) == sorted(rows.index)
    assert rows["correct"].mean() == run.metrics["accuracy"]["ct"]["value"]


def test_zero_shot_was_trained_on_nothing(sweep):
    run = read_run(sweep / "zero_shot-seed0")
    assert run.trained_on == run.in_domain == run.traced_steps == run.alarms == []
    assert run.curves.empty


def test_only_the_last_evaluated_step_counts(tmp_path):
    folder = write_run(tmp_path, "sft", n=12)
    path = folder / "predictions.jsonl"
    early = [json.loads(line) | {"step": 1, "correct": False} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in early) + path.read_text())
    assert set(read_run(folder).predictions["step"]) == {75}


def test_line_separators_inside_a_completion_do_not_cut_a_row(tmp_path):
    folder = write_run(tmp_path, "sft", n=12)
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["text"] = "one\u2028two\x85three"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    assert read_run(folder).answers("mri").iloc[0]["text"] == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", None, "has no metrics.json"),
        ("metrics.json", "{", "JSONDecodeError"),
        ("metrics.json", '{"run": {"seed": 0}, "accuracy": {}}', "KeyError: 'method'"),
        ("predictions.jsonl", None, "missing or empty"),
        ("predictions.jsonl", '{"step": 1}\n{"ste', "line 2 is not JSON"),
    ],
)
def test_a_broken_folder_has_an_error_that_names_the_fault(tmp_path, file, content, message):
    folder = write_run(tmp_path, "sft", n=6)
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(RunFolderError, match=message):
        _ = read_run(folder).predictions


def test_a_method_outside_the_package_has_its_own_name_and_comes_last():
    assert (method_title("reinforce_pp"), method_title("mine")) == ("REINFORCE++", "mine")
    assert sorted(["mine", "gdpo", "sft"], key=method_order) == ["sft", "gdpo", "mine"]


def test_stale_metrics_are_refused(tmp_path):
    folder = write_run(tmp_path, "sft", n=6)
    edit_lines(folder / "predictions.jsonl", lambda r: r | {"correct": False})
    with pytest.raises(RunFolderError, match="one of them is stale"):
        _ = read_run(folder).predictions


def test_unfinished_runs_are_named_not_read(tmp_path):
    write_run(tmp_path, "sft", n=6)
    (tmp_path / "grpo_600-seed0" / ".hydra").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    runs, unfinished = find_runs([tmp_path])
    assert [r.method for r in runs] == ["sft"]
    assert [p.name for p in unfinished] == ["grpo_600-seed0"]
    with pytest.raises(RunFolderError, match="no finished run"):
        find_runs([tmp_path / "grpo_600-seed0"])
    with pytest.raises(RunFolderError, match="contains no run"):
        find_runs([tmp_path / "notes"])


def test_groups_scopes_and_differences(comparison):
    assert [row.label for row in comparison.groups] == ["Zero-shot", "SFT", "GRPO"]
    assert list(comparison.scopes) == ["mri", "ct", "xray", OUTSIDE, MEAN]
    assert comparison.scopes[OUTSIDE] == ["ct", "xray"]
    pairs = list(dict.fromkeys((d.first, d.second) for d in comparison.differences))
    assert pairs == [("SFT", "Zero-shot"), ("GRPO", "Zero-shot"), ("GRPO", "SFT")]
    for d in comparison.differences:
        a, b = (comparison.accuracy[label][d.where].value for label in (d.first, d.second))
        assert d.interval.value == pytest.approx(a - b)
        assert d.interval.low <= d.interval.value <= d.interval.high
        assert d.adjusted >= d.p
        assert (d.test == "mcnemar exact") == (d.where in ("mri", "ct", "xray"))


def test_shared_images_turn_off_tests_for_independent_questions(tmp_path):
    for method in ("sft", "grpo"):
        folder = write_run(tmp_path, method, n=20)
        edit_lines(folder / "predictions.jsonl", lambda r: r | {"image_group": r["sample_id"][:-1]})
    c = compare([tmp_path])
    assert {d.test for d in c.differences} == {"bootstrap"}
    assert c.accuracy["GRPO"]["ct"].method == "cluster bootstrap"


def test_seeds_share_a_group_and_changed_settings_do_not(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "grpo", seed, n=10)
    write_run(tmp_path, "grpo", 0, n=10, name="grpo_600-beta0-seed0", changes={"method.beta": 0.0})
    rows = {row.label: row.seeds for row in compare([tmp_path]).groups}
    assert rows == {"GRPO (beta=0.0)": [0], "GRPO (beta=0.04)": [0, 1]}


def test_a_row_is_named_by_the_class_that_differs_not_by_its_arguments(tmp_path):
    fast = {"rollout._target_": "a.Fast", "rollout.compact": True}
    write_run(tmp_path, "grpo", 0, n=10, name="grpo_600-fast-seed0", changes=fast)
    for size in (1, 2):
        plain = {"rollout._target_": "a.Plain", "rollout.max_rows": size}
        write_run(tmp_path, "grpo", 0, n=10, name=f"grpo_600-{size}-seed0", changes=plain)
    labels = {row.label for row in compare([tmp_path]).groups}
    plain = {f"GRPO (rollout=a.Plain, max_rows={size})" for size in (1, 2)}
    assert labels == {"GRPO (rollout=a.Fast)", *plain}


def test_the_same_run_twice_is_refused(tmp_path):
    write_run(tmp_path, "grpo", n=6)
    write_run(tmp_path, "grpo", n=6, name="grpo_600-seed0-2")
    with pytest.raises(RunFolderError, match="the same configuration and seed"):
        compare([tmp_path])


def test_other_questions_are_not_paired(tmp_path):
    write_run(tmp_path, "sft", n=10)
    folder = write_run(tmp_path, "grpo", n=10)
    edit_lines(
        folder / "predictions.jsonl", lambda r: r | {"question": r["question"].replace("lesion", "cyst")}
    )
    with pytest.raises(UnpairedError, match=r"answered different questions of mri .*without a partner"):
        compare([tmp_path])


def test_fairness_names_each_difference(tmp_path, sweep):
    sft = read_run(sweep / "sft_600-seed0")
    fair = compare_settings(sft, read_run(sweep / "grpo_600-seed0"), ("SFT", "GRPO"))
    assert fair.fair
    assert fair.differences == ()
    assert {s.key.rsplit(".", 1)[-1] for s in fair.same_work} >= {
        "epochs",
        "prompts_per_step",
        "max_completion_tokens",
    }
    assert [s.key for s in fair.tuned if not s.equal] == ["method.optim.lr"]
    other = write_run(
        tmp_path, "grpo", n=6, changes={"data.train.n": 1200, "model.recipe.epochs": 4, "trainer.devices": 2}
    )
    again = write_run(tmp_path, "grpo", seed=1, n=6)
    assert not compare_settings(sft, read_run(again), ("SFT", "GRPO")).fair  # another order of questions
    unfair = compare_settings(sft, read_run(other), ("SFT", "GRPO"))
    assert not unfair.fair
    assert [(s.key, s.first, s.second) for s in unfair.differences] == [
        ("data.train.n", 600, 1200),
        ("model.recipe.epochs", 2, 4),
        ("trainer.devices", 1, 2),
    ]


def test_bold_needs_the_adjusted_test(comparison):
    bold = {
        (row[0].text, head.text): cell.bold
        for table in [accuracy_table(comparison)]
        for row in table.rows
        for head, cell in zip(table.heads, row, strict=True)
        if row[0].note != "parsed leniently"
    }
    for scope, name in (("mri", "MRI"), ("ct", "CT")):
        best = comparison.best(scope)
        assert [label for label in ("Zero-shot", "SFT", "GRPO") if bold[label, name]] == [best] * (
            best is not None
        )
    assert comparison.best("mri") is None  # GRPO and SFT are alike in domain
    assert comparison.best(MEAN) == "GRPO"


def test_best_needs_every_test_against_it(comparison):
    def with_adjusted(p_of):
        changed = [dataclasses.replace(d, adjusted=p_of(d)) for d in comparison.differences]
        return dataclasses.replace(comparison, differences=changed).best(MEAN)

    assert with_adjusted(lambda d: 0.04) == "GRPO"
    assert with_adjusted(lambda d: 0.06) is None
    assert with_adjusted(lambda d: 0.06 if (d.first, d.second) == ("GRPO", "SFT") else 0.04) is None


def test_headline_states_when_a_difference_is_not_supported(comparison):
    text = headline(comparison)
    assert text.startswith("Outside the training domain (CT and X-ray), GRPO answers")
    assert "In domain (MRI)" in text
    assert "which the test does not support" in text.split("In domain")[1]
    assert "One seed" in text


def test_headline_states_that_there_are_more_pairs(tmp_path):
    write_run(tmp_path, "sft", n=8)
    for beta in (0.0, 0.1, 0.2):
        write_run(tmp_path, "grpo", n=8, name=f"grpo_600-beta{beta}", changes={"method.beta": beta})
    assert headline(compare([tmp_path])).endswith("2 more such pairs of rows are in the tables.")


def test_headline_counts_seeds(tmp_path):
    write_run(tmp_path, "sft", 0, n=8)
    for seed in (0, 1):
        write_run(tmp_path, "grpo", seed, n=8)
    assert headline(compare([tmp_path])).endswith("Seeds: 1 of SFT and 2 of GRPO.")
    (tmp_path / "sft_600-seed0" / "metrics.json").unlink()
    assert headline(compare([tmp_path])).endswith("Means over 2 seeds.")


def test_curves_overlay_what_both_methods_log(comparison):
    lines = {panel.title: [label for label, *_ in panel.lines] for panel in curve_panels(comparison)}
    assert lines["Validation accuracy"] == ["SFT", "GRPO"]
    assert lines["Reward: format"] == lines["KL to the reference"] == ["GRPO"]
    assert lines["Loss of SFT"] == ["SFT"]


def test_figures_take_the_pages_colours_and_repeat(comparison, tmp_path):
    first, second = dot_panels(comparison), dot_panels(comparison)
    assert first == second
    assert "var(--series-2)" in first[1].svg
    assert "var(--ink)" in first[1].svg
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[1-9]", first[1].svg)  # no stand-in colour is left
    png = comparison_figure(comparison, tmp_path / "comparison.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert comparison_figure(comparison, tmp_path / "again.png").read_bytes() == png


def test_questions_are_chosen_by_rule(comparison):
    shown, patterns = examples.choose_questions(comparison, per_set=2)
    assert [q.test_set for q in shown] == ["mri", "mri", "ct", "ct", "xray", "xray"]
    assert all(q.image.startswith("data:image/png;base64,") for q in shown)
    assert sum(p.count for p in patterns) == 180
    for q in shown:
        for answer in q.answers:
            assert answer.correct == (answer.letter == q.gold)


def test_groups_show_the_first_and_the_last_step(sweep):
    first, last = examples.choose_completion_groups(read_run(sweep / "grpo_600-seed0"))
    assert (first.step, last.step) == (1, 75)
    assert len(first.completions) == 8
    assert first.reward_std > 0


def test_page_is_one_file_and_accessible(sweep):
    path = write_comparison_report([sweep], sweep)
    text = path.read_text()
    page = Page(text)
    assert not any("src" in script for script in page.all("script"))
    assert not page.all("link")
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("h1")) == 1
    assert all(figure["aria-label"] for figure in page.all("figure"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"][1:].split("?")[0] for a in page.all("a")} <= ids
    assert {s["aria-labelledby"] for s in page.all("section")} <= ids
    text = "".join(page.text)
    assert "6 of 16 groups have equal rewards" in text
    assert f"medvlm-r1 compare {sweep}" in text
    assert "2 CPU cores" in text


def test_page_of_a_single_run(sweep):
    path = write_run_report(sweep / "grpo_600-seed0")
    assert path == sweep / "grpo_600-seed0" / "report.html"
    text = "".join(Page(path.read_text()).text)
    assert "GRPO on MRI, CT and X-ray" in text
    assert "Inside training" in text
    assert "Differences on the same questions" not in text


def test_page_of_a_bare_run(tmp_path):
    """No curves, pictures, timing, configuration or rollouts: still a page."""
    folder = write_run(tmp_path, "zero_shot", n=8)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name not in ("metrics.json", "predictions.jsonl"):
            path.rmdir() if path.is_dir() else path.unlink()
    text = "".join(Page(write_run_report(folder).read_text()).text)
    assert "image not saved" in text
    assert "No alarm." in text


def with_audit(folder, audit):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audit": audit}))


def test_a_leak_marks_every_number_that_it_touches(tmp_path):
    """MRI leaks: MRI and the means over it carry the dagger, in rows that were trained and nowhere else."""
    for method in ("zero_shot", "grpo"):
        with_audit(write_run(tmp_path, method), audit(copies=18))
    c = compare([tmp_path])
    table = accuracy_table(c)
    marked = {
        (row[0].text, head.text)
        for row in table.rows
        for head, cell in zip(table.heads, row, strict=True)
        if "†" in cell.text
    }
    assert marked == {("GRPO", "MRI"), ("GRPO", "Mean")}
    assert table.notes[-1] == "† 30.0 % of the MRI questions show a copy of a training image."
    marks = [cell.text.endswith("†") for cell in difference_table(c).rows[0]]
    assert marks == [False, True, False, False, False, True]
    assert "†" in as_markdown(table)
    text = "".join(Page(write_comparison_report([tmp_path], tmp_path).read_text()).text)
    assert "18 of 60 mri questions show a copy of a training image." in text
    assert "test/3.png" in text


def test_no_dagger_where_the_leak_was_dropped_or_nothing_was_found(tmp_path):
    folder = write_run(tmp_path, "grpo")
    for found in (audit(), audit(copies=18) | {"dropped": 9}, {}):
        with_audit(folder, found)
        assert "†" not in as_markdown(accuracy_table(compare([folder])))
    assert "Audit of the data" not in write_run_report(folder).read_text()


def test_model_text_is_escaped(tmp_path):
    folder = write_run(tmp_path, "grpo", n=6)
    attack = "<think></div><script>alert(1)</script><answer>A</answer>"
    edit_lines(
        folder / "predictions.jsonl", lambda r: r | {"text": attack, "question": "<img src=x onerror=y>?"}
    )
    edit_lines(folder / "rollouts" / "step-1.jsonl", lambda r: r | {"text": attack})
    (folder / "metrics.csv").unlink()
    page = Page(write_run_report(folder).read_text())
    assert [script.get("id") for script in page.all("script")] == ["trace-data", "trace-pictures", None]
    assert not [i for i in page.all("img") if "onerror" in i]
    assert "</div><script>alert(1)</script>" in "".join(page.text)


def test_small_formats():
    assert mark_tags("<think>a & b") == '<span class="tag">&lt;think&gt;</span>a &amp; b'
    assert "5 line breaks" in mark_tags("A\n\n\n\n\nB")
    assert "white space only" in mark_tags(" \n")
    assert (clock(64.3), clock(5.04), clock(7500)) == ("1 min 04 s", "5.0 s", "2 h 05 min")
    assert (percent(0.0123), percent(-0.0123, signed=True), percent(-0.0001)) == (
        "1.2",
        "\N{MINUS SIGN}1.2",
        "0.0",
    )


def test_a_metric_of_one_seed_only_is_drawn(tmp_path):
    first, second = (write_run(tmp_path, "grpo", seed, n=6) for seed in (0, 1))
    pd.read_csv(first / "metrics.csv")[["step", "train/kl"]].to_csv(first / "metrics.csv", index=False)
    (second / "metrics.csv").unlink()
    assert [p.title for p in curve_panels(compare([tmp_path]))] == ["KL to the reference"]
