"""Files that survive a kill or a full disk."""

import json
import os

import pytest

from medvlm_r1.runs import durable
from medvlm_r1.runs.durable import LineLog, replace_file, replace_folder, write_whole


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_as_a_unit_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_whole(path, json.dumps({"a": "é"}))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"half")
    assert json.loads(path.read_text("utf-8")) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_file_and_folder_are_on_disk_before_and_after_the_rename(kind, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append((path.name, (tmp_path / "x").exists())))
    if kind == "file":
        with replace_file(tmp_path / "x") as partial:
            partial.write_bytes(b"1")
        assert synced == [("x.partial", False), (tmp_path.name, True)]
    else:
        with replace_folder(tmp_path / "x") as partial:
            (partial / "a").write_bytes(b"1")
        assert synced == [("a", False), (tmp_path.name, True)]


def test_a_log_loses_only_the_line_that_was_being_written(tmp_path):
    log = LineLog(tmp_path / "log.jsonl")
    assert list(log.read()) == []
    log.append({"text": "é\u2028"}, [2])
    with log.path.open("ab") as file:
        file.write(b'{"torn')
    assert [(number, json.loads(line)) for number, line in log.read()] == [(1, {"text": "é\u2028"}), (2, [2])]
    LineLog(log.path).append(3)
    assert list(log.read()) == [(3, b"3\n")]
    assert log.path.read_text("utf-8").split("\n") == ['{"text": "é\u2028"}', "[2]", "3", ""]
