"""Tables on a console: every number is printed, however many test sets there are."""

import io

import pytest
from rich.console import Console

from medvlm_r1.report.tables.table import Cell, Table, print_table


def printed(columns: int, width: int, label: str = "GRPO") -> str:
    heads = [Cell("Method"), *(Cell(f"Set{k}", "in domain; n = 300") for k in range(columns))]
    rows = [[Cell(label, "grpo_600; seed 0"), *(Cell(f"{k}.5", f"{k}.1-{k}.9") for k in range(columns))]]
    out = io.StringIO()
    print_table(Table("Accuracy", heads, rows, ["The note."]), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("columns", [1, 3, 8, 12, 40])
@pytest.mark.parametrize("width", [40, 80, 110])
@pytest.mark.parametrize("label", ["GRPO", "a method with a long name that folds"])
def test_no_column_is_lost(columns, width, label):
    text = printed(columns, width, label)
    words = text.split()
    for k in range(columns):
        assert words.count(f"Set{k}") == words.count(f"{k}.5") == words.count(f"{k}.1-{k}.9") == 1
    assert words.count("Accuracy") == words.count("note.") == 1
    assert max(map(len, text.splitlines())) <= width


def test_every_block_has_the_labels():
    text = printed(12, 80)
    assert text.count("GRPO") == text.count("Method") > 1
    assert printed(5, 80).count("GRPO") == 1
