"""Names and texts that look like markup stay text in the page, console, Markdown, LaTeX and figures."""

import io
import json
import re

import pytest
from markdown_it import MarkdownIt
from omegaconf import OmegaConf
from rich.console import Console
from run_folders import audit, write_run, write_sweep

from medvlm_r1.cli.audit import main as audit_main
from medvlm_r1.cli.compare import main
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.figures import comparison_figure, dot_panels
from medvlm_r1.report.matrix.assemble import assemble
from medvlm_r1.report.matrix.tables import heat_map, heat_map_svg
from medvlm_r1.report.page.render import write_comparison_report
from medvlm_r1.report.tables.paper import as_latex, escaped
from medvlm_r1.report.tables.table import Cell, Table, as_markdown, as_rich

pytestmark = pytest.mark.usefixtures("few_draws")

HOSTILE = (
    r"""[bold]</script><svg onload="window.attacked=1">{{ 7*7 }} {% x %} $a^{b$ &lt;| `c` [d](e) #_~ \n \\"""
)
TABLE = Table(
    HOSTILE,
    [Cell(HOSTILE), Cell("n", HOSTILE)],
    [[Cell(HOSTILE), Cell(HOSTILE, HOSTILE, bold=True)]],
    [HOSTILE],
)


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three runs whose texts, names, settings, alarms and audits are all hostile."""
    folder = write_sweep(tmp_path_factory.mktemp("hostile") / "sweep", n=6)
    texts = {"question": HOSTILE, "text": HOSTILE, "question_type": HOSTILE, "options": [HOSTILE] * 4}
    sets = {"mri": "mri", "ct": HOSTILE, "xray": "xray"}
    for run in folder.iterdir():
        edit(run / "predictions.jsonl", lambda row: row | texts | {"test_set": sets[row["test_set"]]})
        for path in run.glob("rollouts/*"):
            edit(path, lambda row: row | texts)
        found = audit(copies=6)
        found |= {"verdict": f"{found['verdict']}; {HOSTILE}", "faults": [HOSTILE]}
        found["leaks"][0] |= {
            "kinds": {HOSTILE: 6},
            "pairs": [{"kind": HOSTILE, "first": HOSTILE, "second": "b", "distance": 0.1}],
        }
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["accuracy"] = {sets[name]: rate for name, rate in metrics["accuracy"].items()}
        metrics |= {"audit": found, "counters": {HOSTILE: HOSTILE}}
        metrics["run"] |= {
            "model": HOSTILE,
            "command": HOSTILE,
            "experiment": HOSTILE,
            "name": run.name + HOSTILE,
        }
        if run.name.startswith("grpo"):
            metrics["run"]["method"] = HOSTILE
            (run / "alarms.jsonl").write_text(
                json.dumps({"step": 1, "alarm": HOSTILE, "message": HOSTILE}) + "\n"
            )
            settings = OmegaConf.load(run / "config.yaml")
            settings.data.train.split = HOSTILE
            OmegaConf.save(settings, run / "config.yaml")
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "timing.json").write_text(json.dumps({"hardware": HOSTILE, "seconds": {}}))
    return folder


def test_the_page_shows_it_as_text(chromium, sweep):
    page = write_comparison_report([sweep], sweep)
    chromium.show(page)
    sections = chromium.evaluate(
        "[...document.querySelectorAll('main > section')].map((s) => [s.id, s.textContent])"
    )
    plain = " ".join(HOSTILE.split())
    for name, text in [*sections, ("title", chromium.evaluate("document.querySelector('h1').textContent"))]:
        if name not in ("curves", "title"):  # which wrap it over lines, or join it to other words
            assert plain.lower() in " ".join(text.split()).lower(), name
        assert "{{ 7*7 }}" in text, name
    assert chromium.evaluate("window.attacked") is None
    assert chromium.evaluate("document.querySelectorAll('svg:not([viewBox])').length") == 0
    drawn = chromium.evaluate("[...document.querySelectorAll('#accuracy svg')].map((s) => s.textContent)")
    for figure in drawn:
        assert re.sub(r"\s", "", HOSTILE) in re.sub(r"\s", "", figure)
    chromium.show(page, "#traces?view=train")
    assert HOSTILE in chromium.evaluate("document.querySelector('#trace-detail .response').textContent")
    assert chromium.evaluate("window.attacked") is None


def test_the_console_prints_it_as_text():
    out = io.StringIO()
    Console(file=out, width=1000).print(as_rich(TABLE))
    assert out.getvalue().count(HOSTILE) == 7  # title, two heads, two cells, a note in a cell, a note


def test_markdown_shows_it_as_text():
    (heading, *_, note) = tokens = MarkdownIt("commonmark").enable("table").parse(as_markdown(TABLE))
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children}
    assert kinds <= {"text", "text_special", "strong_open", "strong_close"}
    shown = ["".join(child.content for child in token.children) for token in inline]
    assert shown == [HOSTILE, HOSTILE, f"n ({HOSTILE})", HOSTILE, f"{HOSTILE} ({HOSTILE})", HOSTILE]
    assert (heading.type, note.type) == ("heading_open", "paragraph_close")


def test_latex_prints_it_as_text():
    body = as_latex([TABLE])
    assert not re.search(r"\\\\\s*\[", body)  # a bracket after a line break is an optional argument
    commands = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|ensuremath)\{[<>]?\}|\{\[\}", "", escaped(HOSTILE)
    )
    assert not re.search(r"(?<!\\)[&%$#_{}~^<>]", commands)
    assert escaped("\N{DAGGER}\N{DOUBLE DAGGER}").isascii()


def test_the_audit_prints_it_as_text(tmp_path, capsys):
    row = {"image": "a.png", "question": HOSTILE, "options": [HOSTILE, "b"], "answer": "b", "subset": "X-Ray"}
    paths = [tmp_path / f"{name}.json" for name in ("train", "[bold]x")]
    for path in paths:
        path.write_text(json.dumps([row]))
    assert audit_main(["--train", str(paths[0]), "--test", str(paths[1])]) == 0
    assert capsys.readouterr().out.count("[bold]x") >= 4  # in each of the tables, and in the verdict


def test_every_output_of_a_comparison_is_written(sweep, tmp_path, capsys):
    assert main([str(sweep), "--out", str(tmp_path)]) == 0
    assert "{{ 7*7 }}" in capsys.readouterr().out
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert HOSTILE in [row["label"] for row in written["rows"]]


@pytest.mark.parametrize("name", ["$a^{b$", "$x$ of $y$", r"\frac{", "a_b^c"])
def test_a_figure_takes_no_name_for_a_formula(tmp_path, name):
    for domain in ("mri", "ct"):
        changes = {"data.domain": domain, "prompt.name": name, "data.train.modality": domain}
        write_run(tmp_path, "grpo", n=4, name=domain, changes=changes)
        path = tmp_path / domain / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["run"]["method"] = name
        path.write_text(json.dumps(metrics))
    matrices = assemble([tmp_path])
    comparison = compare([tmp_path])
    for figure in (heat_map_svg(matrices.matrices[0]), dot_panels(comparison)[0].svg):
        assert name.split()[0] in figure
    heat_map(matrices, tmp_path / "matrix.png")
    comparison_figure(comparison, tmp_path / "accuracy.png")
