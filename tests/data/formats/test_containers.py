"""Files as other tools write them: CSV of pandas, R and Excel, JSON in other forms, Parquet of every type."""

import datetime
import decimal
import json
import logging

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.image_folder import ImageFolder, image_folder
from medvlm_r1.data.formats.mcq_json import McqJson, mcq_json
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.rows import read_json, read_parquet
from medvlm_r1.data.formats.table import Table, table
from medvlm_r1.data.sample import BadRowError

UNCHECKED = RowPolicy(check_images=False)
ROW = {
    "image": "1.png",
    "question": "What is it?",
    "options": "brain|liver",
    "answer": "liver",
    "modality": "ct",
}
CSV = "image,question,options,answer,modality\n1.png,What is it?,brain|liver,liver,ct\n"


def only(path, columns=None, **options):
    (sample,) = Table(path, columns or Columns(), rows=UNCHECKED, **options)
    return sample.images[0].path.name, sample.question, sample.options, sample.answer, sample.modality


EXPECTED = ("1.png", "What is it?", ("brain", "liver"), "B", "ct")
TEXTS = {
    "plain": CSV,
    "pandas index": ",image,question,options,answer,modality\n0,1.png,What is it?,brain|liver,liver,ct\n",
    "two indices": ",,image,question,options,answer,modality\n0,a,1.png,What is it?,brain|liver,liver,ct\n",
    "trailing comma": CSV.replace("\n", ",\n"),
    "trailing commas in rows": CSV.replace("modality\n", "modality\n").replace("ct\n", "ct,,\n"),
    "trailing comma in the header": CSV.replace("modality\n", "modality,\n"),
    "rows of commas": CSV + ",,,,\n , ,,,\n",
    "excel's sep": "sep=;\n" + CSV.replace(",", ";"),
    "excel's sep in quotes": '"sep=;"\r\n' + CSV.replace(",", ";"),
    "semicolons": CSV.replace(",", ";"),
    "tabs": CSV.replace(",", "\t"),
    "spaces": CSV.replace(",", ", "),
    "quotes behind spaces": CSV.replace(",", ", ").replace("What is it?", '"What is it?"'),
    "spaces in the header": CSV.replace("question,", " question ,"),
    "windows": CSV.replace("\n", "\r\n"),
    "old mac": CSV.replace("\n", "\r"),
    "blank lines": "\n\n" + CSV.replace("\n", "\n\n"),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_csv_as_tools_write_it(tmp_path, kind, encoding):
    (tmp_path / "a.csv").write_bytes(TEXTS[kind].encode(encoding))
    assert only(tmp_path / "a.csv") == EXPECTED


def test_pandas_own_default(tmp_path):
    pandas.DataFrame([ROW]).to_csv(tmp_path / "a.csv")
    assert only(tmp_path / "a.csv") == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a\n1,2\n", "has the column 'a' 2 times in its header: give every column a name of its own"),
        ("a, a \n1,2\n", "has the column 'a' 2 times"),
        ("a,b\n1,2,3\n", r"row 0: has 3 fields where the header has 2 \(line 2: '1,2,3'\)"),
        ("sep=,\na,b\n1,2,3\n", r"\(line 3: '1,2,3'\)"),
        ("a,b\n1\n", "row 0: has 1 fields where the header has 2"),
        ("a,b\n", "holds no rows"),
        ("sep=;\n", "holds no rows"),
        ("x;image,question\n1,2\n", "Its names hold another delimiter: set data.delimiter"),
        ("Image,Question\n1,2\n", r"has no column 'image' \(data\.columns\.image\): did you mean 'Image'\?"),
        ("IMAGE,question\n1,2\n", r"did you mean 'IMAGE'\?"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadRowError, match=message):
        Table(tmp_path / "a.csv", Columns(), rows=UNCHECKED)


def test_an_encoding_without_a_mark_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(CSV.encode("utf-16-le"))
    with pytest.raises(BadRowError, match=r"holds NUL characters: set data\.encoding, e\.g\. to utf-16-le"):
        only(tmp_path / "a.csv")
    assert only(tmp_path / "a.csv", encoding="utf-16-le") == EXPECTED


def test_a_long_field_is_a_field(tmp_path):
    (tmp_path / "a.csv").write_text(CSV.replace("What is it?", "x" * 10**6))
    assert len(only(tmp_path / "a.csv")[1]) == 10**6


def test_a_nul_in_a_text(tmp_path):
    for column in ("question", "options"):
        (tmp_path / "a.json").write_text(json.dumps([ROW | {column: "a\0|liver"}]))
        with pytest.raises(BadRowError, match=r"row 0: .*NUL"):
            only(tmp_path / "a.json")


FORMS = {
    "a.json": "[{row}]",
    "array.jsonl": "[{row}]",
    "pretty.jsonl": "[\n{row}\n]\n",
    "lines.json": "{row}\n\n{other}\n",
    "windows.jsonl": "{row}\r\n{other}\r\n",
    "data.json": '{{"version": "1", "data": [{row}], "tags": []}}',
    "questions.json": '{{"questions": [{row}, {other}]}}',
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_other_forms(tmp_path, name, encoding):
    text = FORMS[name].format(row=json.dumps({"a": "ä"}, ensure_ascii=False), other='{"a": "b"}')
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_json(tmp_path / name)[0] == {"a": "ä"}
    assert len(read_json(tmp_path / name)) == 1 + text.count('"b"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"train": [{"a": 1}], "test": [{"a": 2}]}',
            "an object with the lists 'train', 'test': write each to a file",
        ),
        ('{"image": {"0": "1.png"}, "answer": {"0": "x"}}', r"write it with to_json\(orient='records'\)"),
        (
            '{"columns": ["image"], "index": [0], "data": [["1.png"]]}',
            r"write it with to_json\(orient='records'\)",
        ),
        ('{"image": "1.png", "options": ["a", "b"]}', r"JSON dict, not an array: wrap the rows in \[ \]"),
        ('{"data": []}', "JSON dict, not an array"),
        ("7", "JSON int, not an array"),
        ('{"a": 1}\n{"a" 2}', r"line 2 column 6 .*correct that line"),
        ('[{"a": 1}] x', "Extra data"),
    ],
)
def test_json_that_is_something_else(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadRowError, match=message):
        read_json(tmp_path / "a.json")


def test_a_table_is_named_where_json_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(BadRowError, match=r"a\.csv is no JSON file: data=table reads CSV and Parquet"):
        McqJson(tmp_path / "a.csv")
    pandas.DataFrame([ROW]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match=r"a\.parquet is no JSON file: data=table reads CSV and Parquet"):
        McqJson(tmp_path / "a.parquet")


PATIENTS = {
    "int8": pyarrow.array([0, 7, None], pyarrow.int8()),
    "uint64": pyarrow.array([0, 7, None], pyarrow.uint64()),
    "half": pyarrow.array([np.float16(0), np.float16(7), None], pyarrow.float16()),
    "float": pyarrow.array([0, 7, float("nan")], pyarrow.float32()),
    "double": pyarrow.array([0, 7, float("nan")], pyarrow.float64()),
    "decimal": pyarrow.array([decimal.Decimal(0), decimal.Decimal(7), None], pyarrow.decimal128(9, 3)),
    "string": pyarrow.array(["0", "7.0", ""], pyarrow.string()),
    "large string": pyarrow.array(["0", " 7", "nan"], pyarrow.large_string()),
    "binary": pyarrow.array([b"0", b"7", b""], pyarrow.binary()),
    "dictionary": pyarrow.array(["0", "7", None]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", PATIENTS)
def test_a_patient_of_every_type_of_arrow(tmp_path, kind):
    rows = {key: [value] * 3 for key, value in ROW.items()}
    content = pyarrow.table(rows | {"patient": PATIENTS[kind]})
    pyarrow.parquet.write_table(content, tmp_path / "a.parquet")
    groups = [s.image_group for s in Table(tmp_path / "a.parquet", Columns(group="patient"), rows=UNCHECKED)]
    assert groups[:2] == ["0", "7"]
    assert groups[2].startswith("1.png-")  # missing: a group of its own


def test_other_columns_of_every_type(tmp_path):
    content = {
        "image": pyarrow.array(["1.png"], pyarrow.large_string()),
        "question": pyarrow.array(["What is it?"]).dictionary_encode(),
        "options": pyarrow.array([[0.1, 2.0]], pyarrow.list_(pyarrow.float32())),
        "answer": pyarrow.array([2.0], pyarrow.float16()),
        "modality": pyarrow.array(["ct"], pyarrow.string_view()),
        "kind": pyarrow.array([datetime.datetime(2020, 1, 31)], pyarrow.timestamp("ns")),
        "id": pyarrow.array([decimal.Decimal(12)], pyarrow.decimal128(5, 1)),
    }
    pyarrow.parquet.write_table(pyarrow.table(content), tmp_path / "a.parquet")
    (sample,) = Table(tmp_path / "a.parquet", Columns(question_type="kind", id="id"), rows=UNCHECKED)
    assert sample.options == ("0.1", "2")
    assert (sample.answer, sample.question_type, sample.id) == ("B", "2020-01-31", "a-12")


@pytest.mark.parametrize(
    "options",
    [
        pyarrow.array([[("A", "brain"), ("B", "liver")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
        pyarrow.array([{"A": "brain", "B": "liver", "C": None}]),
        pyarrow.array([["brain", "liver"]], pyarrow.large_list(pyarrow.string())),
        pyarrow.array([["brain", "liver"]], pyarrow.list_(pyarrow.string(), 2)),
    ],
    ids=["map", "struct", "large list", "fixed list"],
)
def test_nested_options_of_arrow(tmp_path, options):
    content = pyarrow.table({key: [value] for key, value in ROW.items()} | {"options": options})
    pyarrow.parquet.write_table(content, tmp_path / "a.parquet")
    assert only(tmp_path / "a.parquet") == EXPECTED


def test_bytes_are_named_with_their_column(tmp_path):
    content = {key: [value] for key, value in ROW.items()} | {"answer": [b"\xff\xfe"]}
    pandas.DataFrame(content).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match="row 0: column answer has 2 bytes where text belongs: write text"):
        only(tmp_path / "a.parquet")
    pandas.DataFrame(content | {"image": [b"\x89PNG"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match=r"column 'image' holds bytes"):
        only(tmp_path / "a.parquet")


def test_a_parquet_column_twice(tmp_path):
    content = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["image", "image"])
    pyarrow.parquet.write_table(content, tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match="has the column 'image' 2 times: rename one of them"):
        read_parquet(tmp_path / "a.parquet")


# --- missing is missing ----------------------------------------------------------------------------


PAPER = {"question": "q", "options": ["a", "b"], "answer": "a", "subset": "CT"}


def test_pandas_records_with_nothing_in_a_column(tmp_path):
    """Each row its own group, an unknown type, its file's name as the source: never the text nan."""
    nothing = {
        "group": float("nan"),
        "qtype": float("nan"),
        "dataset": float("nan"),
        "solution": float("nan"),
    }
    rows = [{**PAPER, **nothing, "image": f"{i}.png"} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    source = McqJson(tmp_path / "a.json", rows=UNCHECKED)
    assert len({s.image_group for s in source}) == 3
    assert {(s.question_type, s.source) for s in source} == {("unknown", "a")}
    rows[0]["subset"] = float("nan")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(
        BadRowError, match=r"row 0: has no subset, the modality: add one, or set data\.modality"
    ):
        McqJson(tmp_path / "a.json", rows=UNCHECKED)


def test_one_patient_in_every_container(tmp_path):
    """0 in a JSON file, 0.0 in Parquet, "0" and, beside a missing patient, "0.0" in CSV."""
    shown = {"question": "q", "options": "a|b", "answer": "a", "modality": "ct"}
    frames = {
        "int.csv": [0],
        "float.csv": [0, None],
        "int.parquet": [0],
        "float.parquet": [0, None],
        "a.json": [0],
    }
    for name, patients in frames.items():
        frame = pandas.DataFrame(
            [{**shown, "image": f"{i}.png", "patient": p} for i, p in enumerate(patients)]
        )
        write = {"csv": frame.to_csv, "parquet": frame.to_parquet}.get(name.rpartition(".")[2])
        write(tmp_path / name, index=False) if write else frame.to_json(tmp_path / name, orient="records")
        assert Table(tmp_path / name, Columns(group="patient"), rows=UNCHECKED)[0].image_group == "0"
    assert "0.0" in (tmp_path / "float.csv").read_text()


def test_the_same_patient_in_training_and_test_is_noticed(tmp_path):
    shown = {"question": "q", "options": "a|b", "answer": "a", "modality": "ct"}
    train = pandas.DataFrame([{**shown, "image": f"{i}.png", "patient": float(i)} for i in range(4)])
    train.to_parquet(tmp_path / "train.parquet")
    test = pandas.DataFrame([{**shown, "image": f"t{i}.png", "patient": i} for i in range(2)])
    test.to_parquet(tmp_path / "test.parquet")
    paths = (str(tmp_path / "train.parquet"), {"ct": str(tmp_path / "test.parquet")})
    with pytest.warns(UserWarning, match="2 of 2 questions of test set 'ct' show an image of training"):
        table(*paths, Columns(group="patient"), n_validation=1, rows=UNCHECKED)


def test_a_labels_file_with_numbers_and_gaps(tmp_path):
    frame = pandas.DataFrame(
        {"file": ["0.png", "1.png", "2.png", "3.png"], "label": [0, 1, 1, 0], "patient": [7, 7, None, None]}
    )
    frame["split"] = ["Train", " test", "train ", "VALIDATION"]
    frame.to_csv(tmp_path / "labels.csv")
    (tmp_path / "spaced.csv").write_text((tmp_path / "labels.csv").read_text().replace(",1,", ", 1 ,"))
    for labels in ("labels.csv", "spaced.csv"):
        source = ImageFolder(tmp_path, "ct", labels, rows=UNCHECKED)
        assert [s.answer_text for s in source] == list("0110")
        assert [s.image_group for s in source][:2] == ["7", "7"]
        assert len({s.image_group for s in source}) == 3
        assert [source.splits[s.id] for s in source] == ["train", "test", "train", "validation"]


def test_labels_that_differ_in_case_only(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n0.png,Normal\n1.png,normal \n2.png,cyst\n")
    with pytest.raises(
        ValueError, match="the labels 'Normal' and 'normal' differ only in case or spaces: write them"
    ):
        ImageFolder(tmp_path, "ct", "labels.csv", rows=UNCHECKED)


# --- names of test sets ----------------------------------------------------------------------------


def test_names_of_test_sets_become_text(tmp_path):
    rows = [{**PAPER, "image": f"{i}.png"} for i in range(9)]
    for name, part in {"train": rows[:5], "1": rows[5:7], "2": rows[7:]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    train, tests = str(tmp_path / "train.json"), {1: str(tmp_path / "1.json"), 2.0: str(tmp_path / "2.json")}
    parts = mcq_json(train, tests, n_validation=2, rows=UNCHECKED)
    assert list(parts.test) == ["1", "2"]
    columns = Columns(modality="subset")
    assert list(table(train, tests, columns, n_validation=2, rows=UNCHECKED).test) == ["1", "2"]
    with pytest.raises(ValueError, match=r"data\.test has the names 1, '1': give each test set its own"):
        mcq_json(train, {1: "a.json", "1": "b.json"})
    with pytest.raises(ValueError, match=r"data\.test has the names None"):
        mcq_json(train, {None: "a.json"})
    with pytest.raises(ValueError, match=r"data\.test has the names ' '"):
        image_folder(str(tmp_path), "ct", test={" ": "x"})


def test_reasons_are_counted_in_the_log_and_where_none_is_left(tmp_path, caplog):
    rows = [{**PAPER, "image": f"{i}.png", "answer": "c"} for i in range(5)]
    rows += [{**PAPER, "image": "x.png", "subset": "PET"}, {**PAPER, "image": "0.png"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    skip = RowPolicy(on_bad_row="skip", check_images=False)
    with caplog.at_level(logging.WARNING):
        assert len(McqJson(tmp_path / "a.json", rows=skip)) == 1
    assert (
        "6 rows skipped (5 x answer ... is not among the options ...: give an option's text; 1 x subset"
        in caplog.text
    )
    (tmp_path / "b.json").write_text(json.dumps(rows[:6]))
    with pytest.raises(
        BadRowError, match=r"no row can be used \(5 x answer \.\.\. is not among .*; 1 x subset \.\.\. "
    ):
        mcq_json(str(tmp_path / "b.json"), {"t": str(tmp_path / "a.json")}, n_validation=1, rows=skip)
