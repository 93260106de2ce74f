"""Rows of JSON, JSONL and Parquet files; :mod:`~medvlm_r1.data.formats.csv_rows` reads CSV."""

import json
import zipfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from medvlm_r1.data.formats.csv_rows import read_csv
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.shorten import clip, shorten

JSON_LIMIT = 1 << 30
"""Bytes; parsing a JSON array takes several times its size in memory."""
CSV = (".csv", ".tsv", ".tab")
PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson")


def read_table(
    path: Path,
    delimiter: str | None,
    encoding: str,
    columns: Collection[str] | None = None,
    images: Collection[str] = (),
) -> list[dict | BadRowError]:
    """Read the rows of a file in the format of its suffix; a ragged CSV row becomes a BadRowError.

    Args:
        path: .json, .jsonl, .ndjson, .csv, .tsv, .tab, .parquet or .pq
        delimiter, encoding: of CSV; see :func:`~medvlm_r1.data.formats.csv_rows.read_csv`.
        columns: the columns to read; other Parquet columns are not loaded.
        images: those with paths of images.

    Raises:
        BadRowError: the file is missing, unreadable, of another format, larger than :data:`JSON_LIMIT`,
            damaged or empty, or a Parquet column holds pictures instead of paths.
        ValueError: ``delimiter`` or ``encoding`` is invalid.
    """
    suffix = path.suffix.lower()
    if suffix == ".json" or suffix in _JSON_LINES:
        return read_json(path)
    if suffix in PARQUET:
        return read_parquet(path, columns, images)
    if suffix in CSV:
        return read_csv(path, delimiter, encoding)
    raise BadRowError(
        f"{path} has the suffix {suffix!r}: give a .json, .jsonl, .csv, .tsv or .parquet file, named so"
    )


def read_json(path: Path | zipfile.Path) -> list[Any]:
    """Read the rows of a JSON array, or one JSON value per line, in UTF-8, UTF-16 or UTF-32.

    A ``.json`` file may also hold lines, or an object whose only list is the rows (``{"data": [...]}``).
    """
    is_lines, encoding = path.suffix.lower() in _JSON_LINES, "utf-8"
    if path.suffix.lower() in (*CSV, *PARQUET):
        raise BadRowError(f"{path} is no JSON file: data=table reads CSV and Parquet")
    try:
        if is_lines:
            with path.open("rb") as file:
                encoding = json.detect_encoding(file.read(4))
            with path.open(encoding=encoding) as file:
                is_lines = not file.read(80).lstrip().startswith("[")  # else an array that is named as lines
        size = path.stat().st_size if isinstance(path, Path) else 0  # a member of an archive has no size
        if not is_lines and size > JSON_LIMIT and path.is_file():
            raise BadRowError(
                f"{path} has {size / 1e9:.1f} GB, and a JSON array of more than {JSON_LIMIT >> 30} GiB is "
                "not read: write it as .jsonl (one row a line) or .parquet"
            )
        if is_lines:
            with path.open(encoding=encoding, newline="\n") as file:  # U+2028 does not end a line
                rows = [_parsed(line, path, above) for above, line in enumerate(file) if line.strip()]
        else:
            data = path.read_bytes()
            text = data.decode(json.detect_encoding(data))
            if not text.strip():
                raise BadRowError(f"{path} is empty: give a JSON array with one row a question")
            rows = _array(text, path)
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRowError(
            f"{path} cannot be read ({clip(str(error))}): give a readable UTF-8 JSON file"
        ) from None
    if not rows:
        raise BadRowError(f"{path} holds no rows: give a JSON array with one row a question")
    return rows


def _array(text: str, path: Path | zipfile.Path) -> list[Any]:
    try:
        value = _parsed(text, path, 0)
    except BadRowError as error:
        if not text.lstrip().startswith("{") or "Extra data" not in str(error):
            raise
        return [_parsed(line, path, above) for above, line in enumerate(text.split("\n")) if line.strip()]
    if not isinstance(value, dict):
        if isinstance(value, list):
            return value
        raise BadRowError(f"{path} holds a JSON {type(value).__name__}, not an array: wrap the rows in [ ]")
    if isinstance(value.get("question", value.get("problem")), str):  # JSON lines of a single row
        return [value]
    tables = {key: part for key, part in value.items() if _is_rows(part)}
    if len(tables) == 1:
        return next(iter(tables.values()))
    if tables:
        names = clip(", ".join(map(shorten, tables)), 300)
        raise BadRowError(f"{path} holds an object with the lists {names}: write each to a file of its own")
    by_column = value.keys() >= {"columns", "data"}  # pandas, orient='split'
    if by_column or (value and all(isinstance(part, dict) for part in value.values())):
        raise BadRowError(
            f"{path} holds a JSON dict of columns, not an array: write it with to_json(orient='records')"
        )
    raise BadRowError(f"{path} holds a JSON dict, not an array: wrap the rows in [ ]")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _parsed(text: str, path: Path | zipfile.Path, above: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {above + error.lineno} column {error.colno}"
        raise BadRowError(f"{path} is not valid JSON at {where} ({error.msg}): correct that line") from None
    except ValueError as error:  # Python rejects integers of more than 4,300 digits
        raise BadRowError(f"{path} cannot be read at line {above + 1} or below ({error})") from None
    except RecursionError:
        raise BadRowError(f"{path} is nested too deeply: give flat rows") from None


def read_parquet(
    path: Path, columns: Collection[str] | None = None, images: Collection[str] = ()
) -> list[dict]:
    """Read the rows of a Parquet file; see :func:`read_table`."""
    try:
        schema = pyarrow.parquet.read_schema(path)
        for name, count in Counter(schema.names).items():
            if count > 1:
                raise BadRowError(f"{path} has the column {shorten(name)} {count} times: rename one of them")
        names = schema.names if columns is None else [name for name in schema.names if name in columns]
        for name in names:
            type_ = schema.field(name).type
            if "binary" in str(type_) and (name in images or pyarrow.types.is_nested(type_)):
                raise BadRowError(
                    f"{path}: column {name!r} holds bytes ({clip(str(type_))}): save the images as files and "
                    f"give their paths; or use data=hf_dataset data.path={path.parent}"
                )
        # If none of the columns exists, read all: the caller lists them in its message.
        table = pyarrow.parquet.read_table(path, columns=names or None)
        for index, field in enumerate(table.schema):
            table = table.set_column(index, field.name, _shortest(table[index]))
        rows = table.to_pylist()
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise BadRowError(
            f"{path} is no readable Parquet file ({clip(str(error))}): write it again"
        ) from None
    if not rows:
        raise BadRowError(f"{path} holds no rows: give one row a question")
    return rows


def _shortest(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray | pyarrow.Array:
    """Widen numbers of 16 and 32 bits by their shortest decimals: 0.1 stays 0.1, not 0.10000000149."""
    if column.type in (pyarrow.float16(), pyarrow.float32()):
        narrow = column.type.to_pandas_dtype()
        values = [None if value is None else float(str(narrow(value))) for value in column.to_pylist()]
        return pyarrow.array(values, pyarrow.float64())
    if pyarrow.types.is_list(column.type) and column.type.value_type == pyarrow.float32():
        return column.cast(pyarrow.list_(pyarrow.string()))
    return column
