"""A megabyte in any field of any reader: the message stays short, and a row is skipped like any other."""

import csv
import json

import pandas
import pytest

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.image_folder import ImageFolder
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.mcq_row import read_question
from medvlm_r1.data.formats.question_template import QuestionTemplate
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.table import Table
from medvlm_r1.data.images.resolve import ImageRoot

LONG = "x" * 1_000_000
PICTURE = "iVBORw0KGgo" + "A" * 1_000_000  # base64
VALUES = {
    "text": LONG,
    "lines": "a\n" * 500_000,
    "base64": PICTURE,
    "data uri": f"data:image/png;base64,{PICTURE}",
    "letters": "A) B) " * 170_000,
    "digits": "9" * 1_000_000,
    "control": "\x01" * 1_000_000,
    "brackets": "[" * 1_000_000,
    "list in text": str(["a"] * 200_000),
    "separators": "|" * 1_000_000,
    "list": [LONG, LONG],
    "long list": ["a"] * 200_000,
    "nested": [[[LONG] * 3] * 3],
    "object": {"A": LONG, LONG: "B"},
    "path": {"path": LONG, LONG: 1},
    "settings": {"path": "1.png", "slice": LONG},
    "window": {"path": "1.dcm", "window": [LONG, 1]},
}
TEXTS = {name: value for name, value in VALUES.items() if isinstance(value, str)}
MCQ = {"image": "1.png", "question": "q", "options": ["a", "b"], "answer": "a", "subset": "CT"}
MCQ |= {"solution": "A", "qtype": "t", "dataset": "d", "group": "g"}
INLINE = {"image": "1.png", "problem": "q? A) a, B) b", "solution": "A", "subset": "CT"}
TABLE = {"image": "1.png", "question": "q", "options": "a|b", "answer": "a", "modality": "ct", "kind": "t"}
TABLE |= {"patient": "p", "key": "k", "at": 0, "hu": "lung"}
COLUMNS = {"question_type": "kind", "group": "patient", "id": "key", "slice": "at", "window": "hu"}
LABELS = {"file": "1.png", "label": "a", "split": "train", "patient": "p", "slice": 0, "window": "lung"}
LIMIT = 2000


def short(read):
    """Whether reading succeeds, or fails with a short message, and skips with short lines."""
    for policy in (RowPolicy(check_images=False), RowPolicy("skip")):
        lines = []
        try:
            lines += getattr(read(policy), "skipped", ())
        except ValueError as error:
            lines.append(str(error))
        for line in lines:
            assert len(line) < LIMIT, f"{len(line):,} characters: {line:.3000}"


@pytest.mark.parametrize("kind", VALUES)
def test_the_papers_json(tmp_path, kind):
    for row in (MCQ, INLINE):
        for field in row:
            (tmp_path / "a.json").write_text(json.dumps([row, {**row, field: VALUES[kind]}]))
            for questions in (None, "all"):
                short(lambda policy, q=questions: McqJson(tmp_path / "a.json", questions=q, rows=policy))
            short(lambda _, r={**row, field: VALUES[kind]}: read_question(r, "q", ImageRoot(tmp_path)))


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("answer_is", ["text", "letter"])
def test_a_table_in_json(tmp_path, kind, answer_is):
    columns = Columns(**COLUMNS, answer_is=answer_is)
    for field in TABLE:
        (tmp_path / "a.json").write_text(json.dumps([TABLE, {**TABLE, field: VALUES[kind], "key": "other"}]))
        short(lambda policy: Table(tmp_path / "a.json", columns, rows=policy))
        where = RowFilter({field: "none"})
        short(lambda policy, where=where: Table(tmp_path / "a.json", columns, where=where, rows=policy))
    (tmp_path / "a.json").write_text(json.dumps([{**TABLE, "key": VALUES[kind]}] * 2))
    short(lambda policy: Table(tmp_path / "a.json", columns, rows=policy))


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_tables(tmp_path, kind, suffix):
    path, columns = tmp_path / f"a.{suffix}", Columns(**COLUMNS)
    for field in TABLE:
        frame = pandas.DataFrame([TABLE, {**TABLE, field: TEXTS[kind], "key": "other"}]).astype(str)
        if suffix == "csv":
            frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL)
        else:
            frame.to_parquet(path)
        short(lambda policy: Table(path, columns, rows=policy))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_labels_file(tmp_path, kind):
    for field in LABELS:
        frame = pandas.DataFrame([LABELS, {**LABELS, "label": "b"}, {**LABELS, field: TEXTS[kind]}])
        frame.to_csv(tmp_path / "labels.csv", index=False, quoting=csv.QUOTE_ALL)
        for options in ({}, {"group": "z(.)"}, {"template": QuestionTemplate(names={"c": "d"})}):
            short(lambda policy, o=options: ImageFolder(tmp_path, "ct", "labels.csv", rows=policy, **o))


def test_names_of_columns(tmp_path):
    for row in (MCQ, INLINE, TABLE):
        for field in row:
            renamed = {LONG if key == field else key: value for key, value in row.items()}
            (tmp_path / "a.json").write_text(json.dumps([renamed]))
            short(lambda policy: McqJson(tmp_path / "a.json", rows=policy))
            short(lambda policy: Table(tmp_path / "a.json", Columns(**COLUMNS), rows=policy))
            pandas.DataFrame([renamed]).to_csv(tmp_path / "a.csv", index=False)
            short(lambda policy: Table(tmp_path / "a.csv", Columns(), rows=policy))
            short(lambda policy: ImageFolder(tmp_path, "ct", "a.csv", rows=policy))


@pytest.mark.parametrize("kind", TEXTS)
def test_whole_files(tmp_path, kind):
    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet"):
        (tmp_path / name).write_text(TEXTS[kind])
        short(lambda policy, name=name: Table(tmp_path / name, Columns(), rows=policy))
        short(lambda policy, name=name: McqJson(tmp_path / name, rows=policy))
    for value in ([TEXTS[kind]], {TEXTS[kind]: [{}], "b": [{}]}, {TEXTS[kind]: {}}, TEXTS[kind]):
        (tmp_path / "a.json").write_text(json.dumps(value))
        short(lambda policy: Table(tmp_path / "a.json", Columns(), rows=policy))
