"""The command line: what it prints, what it writes, how it refuses."""

import json

import pandas as pd
import pytest
from run_folders import write_run, write_sweep

from medvlm_r1.cli.compare import main
from medvlm_r1.report.tables.paper import escaped

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "main", seeds=2, n=40)


def test_a_sweep_is_printed_and_written(sweep, capsys):
    (sweep / "sft_600-seed9" / ".hydra").mkdir(parents=True)
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    order = [out.index(word) for word in ("Zero-shot", "SFT", "GRPO", "GRPO \N{MINUS SIGN} SFT", "Fairness")]
    assert order == sorted(order)
    assert "Settings outside the method in which GRPO and SFT differ: none" in out
    assert "model.recipe.epochs: 2 for both" in out
    assert "unfinished, left out" in out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out  # no figure is cut

    written = json.loads((sweep / "comparison.json").read_text())
    assert [row["label"] for row in written["rows"]] == ["Zero-shot", "SFT", "GRPO"]
    assert written["rows"][1]["seeds"] == [0, 1]
    assert written["in_domain"] == ["mri"]
    assert 0 <= written["accuracy"]["GRPO"]["ct"]["value"] <= 1
    assert written["accuracy"]["GRPO"]["ct"]["method"] == "hierarchical bootstrap"
    assert len(written["differences"]) == 15
    assert all(d["test"] == "bootstrap" for d in written["differences"])
    assert written["unfinished"][0].endswith("sft_600-seed9")

    markdown = (sweep / "comparison.md").read_text()
    widths = {
        line.count("|") for line in markdown.split("### Differences")[0].splitlines() if line[:1] == "|"
    }
    assert widths == {9}
    assert "**" in markdown
    assert (sweep / "report.html").is_file()


def test_the_same_input_gives_the_same_files(sweep, tmp_path):
    for name in ("a", "b"):
        assert (
            main([str(sweep / "sft_600-seed0"), str(sweep / "grpo_600-seed0"), "--out", str(tmp_path / name)])
            == 0
        )
    for file in ("comparison.json", "report.html"):
        first, second = ((tmp_path / name / file).read_text() for name in ("a", "b"))
        assert first == second.replace(str(tmp_path / "b"), str(tmp_path / "a"))


def test_baseline_can_be_named(sweep, tmp_path, capsys):
    runs = [str(sweep / f"{name}-seed0") for name in ("zero_shot", "sft_600", "grpo_600")]
    out = ["--out", str(tmp_path)]
    assert main([*runs, "--baseline", "sft_600", *out]) == 0
    differences = json.loads((tmp_path / "comparison.json").read_text())["differences"]
    assert {(d["first"], d["second"]) for d in differences} == {("Zero-shot", "SFT"), ("GRPO", "SFT")}
    assert main([*runs, "--baseline", "grpo_600", *out]) == 0
    differences = json.loads((tmp_path / "comparison.json").read_text())["differences"]
    once = [(d["first"], d["second"]) for d in differences if d["where"] == "mean"]
    assert once == [("Zero-shot", "GRPO"), ("GRPO", "SFT")]  # not SFT minus GRPO too: a test of the family
    assert main([*runs, "--baseline", "dpo", *out]) == 2
    assert "baseline 'dpo' is none of Zero-shot, SFT, GRPO" in capsys.readouterr().err


def test_wrong_folders_give_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "small", "sft", n=6)
    write_run(tmp_path / "large", "grpo", n=8)
    for folders, message in (
        ([tmp_path / "smallest"], f"smallest is not a folder; {tmp_path} has small"),
        ([tmp_path / "empty"], "contains no run"),
        ([tmp_path / "small", tmp_path / "large"], "--out DIR"),
        (
            [tmp_path / "small", tmp_path / "large", "--out", tmp_path],
            "answered different questions of mri (6 and 8",
        ),
    ):
        assert main([str(f) for f in folders]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "outputs/sweeps/main_table" in capsys.readouterr().out


class TestPaperTables:
    def test_csv_holds_every_figure_of_the_json(self, sweep):
        assert main([str(sweep)]) == 0
        table = pd.read_csv(sweep / "comparison.csv")
        written = json.loads((sweep / "comparison.json").read_text())
        for quantity in ("accuracy", "accuracy_lenient", "well_formed", "answered"):
            part = table[table["quantity"] == quantity].set_index(["row", "column"])
            for row, columns in written[quantity].items():
                for column, interval in columns.items():
                    for end in ("value", "low", "high"):
                        assert part.loc[(row, column), end] == pytest.approx(interval[end], abs=1e-15)
        tested = table[table["quantity"] == "difference"]
        assert list(tested["p_holm"]) == pytest.approx([d["adjusted"] for d in written["differences"]])
        assert list(tested["supported"]) == [d["supported"] for d in written["differences"]]

    def test_latex_is_whole_and_bold_where_the_test_supports_it(self, sweep):
        assert main([str(sweep)]) == 0
        latex = (sweep / "comparison.tex").read_text()
        written = json.loads((sweep / "comparison.json").read_text())
        differences = latex.split("\\begin{table}")[2]
        assert differences.count("\\textbf") == sum(d["supported"] for d in written["differences"])
        for part in latex.split("\\begin{table}")[1:]:
            body = part.split("\\toprule")[1].split("\\bottomrule")[0]
            lines = [line for line in body.splitlines() if line.endswith("\\\\")]
            columns = part.split("\\begin{tabular}{")[1].split("}")[0]
            assert {line.count("&") - line.count("\\&") for line in lines} == {len(columns) - 1}
        assert latex.isascii()

    def test_what_latex_would_take_for_a_command_is_escaped(self):
        assert escaped("50 % of a_b & {c} $1 #2 \\x ~ ^") == (
            "50 \\% of a\\_b \\& \\{c\\} \\$1 \\#2 \\textbackslash{}x \\textasciitilde{} \\textasciicircum{}"
        )
        assert escaped("p < 0.001, \N{MINUS SIGN}2.7") == "p \\ensuremath{<} 0.001, \\ensuremath{-}2.7"
