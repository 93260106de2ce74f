"""A bar where work takes long, on a terminal, from one process."""

import pytest

from medvlm_r1.runs import progress
from medvlm_r1.runs.progress import track


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes what it writes to for a terminal
    monkeypatch.setenv("COLUMNS", "100")


def test_what_takes_long_shows_a_bar(terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert list(track(range(5), "Reading rows", 5)) == list(range(5))
    assert "Reading rows" in capsys.readouterr().err
    assert list(track(iter("abc"), "Reading lines")) == list("abc")
    assert "Reading lines" in capsys.readouterr().err


def test_what_ends_soon_shows_none(terminal, capsys):
    assert list(track(range(5), "Reading rows", 5)) == list(range(5))
    assert "Reading rows" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", [("LOCAL_RANK", "1"), ("NODE_RANK", "1"), ("GROUP_RANK", "1"), ("FORCE_COLOR", "")]
)
def test_later_ranks_on_any_node_and_files_show_none(setting, terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setenv(*setting)
    assert list(track(range(5), "Reading rows", 5)) == list(range(5))
    assert capsys.readouterr().err == ""
