"""The notebooks run from top to bottom, define nothing, and are committed without outputs."""

import ast
import json
from pathlib import Path

import matplotlib
import pytest
from run_folders import write_sweep

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
BOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))


def cells(book: Path) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(book.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "miniature", seeds=1, n=40)


def test_all_three_are_there():
    assert [book.stem[:2] for book in BOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_it_runs(book, sweep, monkeypatch):
    """Cell by cell in one namespace, as a kernel does, from the notebooks' own folder."""
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.setenv("MEDVLM_R1_SWEEP", str(sweep))
    monkeypatch.setenv("MEDVLM_R1_RUN", str(sweep / "grpo_600-seed0"))
    matplotlib.use("Agg")
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells(book)):
        exec(compile(cell, f"{book.name}, code cell {number}", "exec"), names)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_it_defines_nothing_and_keeps_no_output(book):
    made = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in cells(book):
        assert not [node for node in ast.walk(ast.parse(cell)) if isinstance(node, made)]
    for cell in json.loads(book.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
