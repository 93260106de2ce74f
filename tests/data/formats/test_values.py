"""One value in the types of every container: the same text, or nothing."""

import datetime
import decimal
import json
import uuid

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from medvlm_r1.data.formats.values import id_or_none, is_missing, text_or_none
from medvlm_r1.data.sample import BadRowError

NOTHING = [
    None,
    float("nan"),
    np.nan,
    np.float16("nan"),
    np.float32("nan"),
    pandas.NA,
    pandas.NaT,
    np.datetime64("NaT"),
    np.timedelta64("NaT"),
    decimal.Decimal("NaN"),
    decimal.Decimal("sNaN"),
    "",
    " \t\n",
    "nan",
    " NaN ",
    "<NA>",
    b"",
    [],
    {},
    np.array([]),
    {"path": None, "bytes": float("nan")},
    pyarrow.scalar(None, pyarrow.string()),
]


@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_missing_is_missing(value):
    assert text_or_none(value) is None
    assert id_or_none(value) is None
    assert is_missing(value)


SAME = {
    "0": [
        0,
        0.0,
        -0.0,
        "0",
        " 0 ",
        np.int8(0),
        np.uint64(0),
        np.float16(0),
        np.float32(0),
        decimal.Decimal("0.00"),
    ],
    "7": [
        7,
        7.0,
        "7",
        np.int64(7),
        np.float64(7),
        decimal.Decimal("7"),
        b"7",
        np.str_("7"),
        pyarrow.scalar(7.0),
    ],
    "0.1": [0.1, "0.1", np.float32(0.1), np.float16(0.1), decimal.Decimal("0.1")],
    "9007199254740993": [9007199254740993, np.int64(9007199254740993), decimal.Decimal(9007199254740993)],
    "True": [True, np.bool_(True), "True", pyarrow.scalar(True)],
    "2020-01-31": [
        datetime.date(2020, 1, 31),
        datetime.datetime(2020, 1, 31),
        pandas.Timestamp("2020-01-31"),
        np.datetime64("2020-01-31"),
        np.datetime64("2020-01-31", "ns"),
        "2020-01-31",
    ],
    "2020-01-31 10:20:30": [
        pandas.Timestamp("2020-01-31 10:20:30"),
        np.datetime64("2020-01-31T10:20:30", "ns"),
    ],
    "12345678-1234-5678-1234-567812345678": [uuid.UUID("12345678-1234-5678-1234-567812345678")],
    "Zähne": ["Zähne", "Zähne".encode(), pyarrow.scalar("Zähne", pyarrow.large_string())],
    '{"case": "7", "site": "A"}': [{"site": "A", "case": 7}, {"case": 7.0, "site": "A", "scan": None}],
    '["7", null]': [[7, None], (7.0, float("nan")), np.array([7, np.nan])],
}


@pytest.mark.parametrize(
    ("text", "value"), [(text, value) for text, values in SAME.items() for value in values]
)
def test_one_value_has_one_text(text, value):
    assert text_or_none(value) == text


def test_a_whole_number_in_text_is_that_number_as_an_id_only():
    assert [id_or_none(value) for value in ("7.0", "-7.00", 7, 7.0, "7.5", "v7.0", "007")] == [
        *("7", "-7", "7", "7"),
        *("7.5", "v7.0", "007"),
    ]
    assert text_or_none("7.0") == "7.0"  # an option "7.0" stays as it is written


def test_bytes_that_are_no_text():
    with pytest.raises(BadRowError, match="has 4 bytes where text belongs: write text"):
        text_or_none(b"\x89PNG")


ARROW = {
    "int": (pyarrow.int8(), [0, 7, None]),
    "float": (pyarrow.float64(), [0, 7, None]),
    "half": (pyarrow.float16(), [np.float16(0), np.float16(7), None]),
    "decimal": (pyarrow.decimal128(9, 2), [0, 7, None]),
    "string": (pyarrow.string(), ["0", "7", None]),
    "large": (pyarrow.large_string(), ["0", "7", None]),
    "view": (pyarrow.string_view(), ["0", "7", None]),
    "binary": (pyarrow.binary(), [b"0", b"7", None]),
    "dictionary": (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["0", "7", None]),
}


@pytest.mark.parametrize("kind", ARROW)
def test_every_type_of_arrow(tmp_path, kind):
    type_, values = ARROW[kind]
    column = pyarrow.array(values, type_)
    pyarrow.parquet.write_table(pyarrow.table({"patient": column}), tmp_path / "a.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [id_or_none(row["patient"]) for row in rows] == ["0", "7", None]


def test_pandas_records_in_every_container(tmp_path):
    frame = pandas.DataFrame({"patient": [0, 7, None]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    texts = (tmp_path / "a.csv").read_text().splitlines()[1:]
    records = json.loads(json.dumps(frame.to_dict("records")))
    for values in (
        texts[:2],
        [row["patient"] for row in records][:2],
        frame["patient"][:2],
        frame["patient"].array[:2],
    ):
        assert [id_or_none(value) for value in values] == ["0", "7"]
    assert id_or_none(records[2]["patient"]) is None
