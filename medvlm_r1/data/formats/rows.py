"""Rows of JSON, JSONL, CSV and Parquet files.

The csv module reads CSV in strict mode, since pandas silently pads short rows and takes a surplus first field
for an index.
"""

import csv
import json
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from medvlm_r1.data.sample import BadRowError

JSON_LIMIT = 1 << 30
"""Bytes; parsing a JSON array takes several times its size in memory."""
PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson")


def read_table(
    path: Path, delimiter: str | None, encoding: str, columns: Collection[str] | None = None
) -> list[dict | BadRowError]:
    """Read the rows of a file in the format of its suffix; a ragged CSV row becomes a BadRowError.

    Args:
        path: .json, .jsonl, .ndjson, .csv, .tsv, .tab, .parquet or .pq
        delimiter: of CSV; ``None`` is a tab for .tsv and .tab, a comma otherwise.
        encoding: of CSV.
        columns: the columns to read; other Parquet columns are not loaded.

    Raises:
        BadRowError: the file is missing, unreadable, of another format, larger than :data:`JSON_LIMIT`,
            damaged or empty, or a Parquet column holds bytes instead of paths.
        ValueError: ``delimiter`` or ``encoding`` is invalid.
    """
    suffix = path.suffix.lower()
    if suffix == ".json" or suffix in _JSON_LINES:
        return read_json(path)
    if suffix in PARQUET:
        return read_parquet(path, columns)
    if suffix in (".csv", ".tsv", ".tab"):
        return read_csv(path, delimiter or ("," if suffix == ".csv" else "\t"), encoding)
    raise BadRowError(
        f"{path} has the suffix {suffix!r}: give a .json, .jsonl, .csv, .tsv or .parquet file, named so"
    )


def read_json(path: Path | zipfile.Path) -> list[Any]:
    """Read the rows of a JSON array or, in a ``.jsonl`` or ``.ndjson`` file, one JSON value per line."""
    is_lines = path.suffix.lower() in _JSON_LINES
    try:
        size = path.stat().st_size if isinstance(path, Path) else 0  # a member of an archive has no size
        if not is_lines and size > JSON_LIMIT and path.is_file():
            raise BadRowError(
                f"{path} has {size / 1e9:.1f} GB, and a JSON array of more than {JSON_LIMIT >> 30} GiB is "
                "not read: write it as .jsonl (one row a line) or .parquet"
            )
        if is_lines:
            with path.open(encoding="utf-8-sig", newline="\n") as file:  # U+2028 does not end a line
                rows = [_parsed(line, path, above) for above, line in enumerate(file) if line.strip()]
        else:
            text = path.read_text(encoding="utf-8-sig")
            if not text.strip():
                raise BadRowError(f"{path} is empty: give a JSON array with one row a question")
            rows = _parsed(text, path, 0)
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRowError(f"{path} cannot be read ({error}): give a readable UTF-8 JSON file") from None
    if not isinstance(rows, list):
        raise BadRowError(f"{path} holds a JSON {type(rows).__name__}, not an array: wrap the rows in [ ]")
    if not rows:
        raise BadRowError(f"{path} holds no rows: give a JSON array with one row a question")
    return rows


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


def read_parquet(path: Path, columns: Collection[str] | None = None) -> list[dict]:
    try:
        schema = pyarrow.parquet.read_schema(path)
        names = schema.names if columns is None else [name for name in schema.names if name in columns]
        for name in names:
            if "binary" in str(schema.field(name).type):
                raise BadRowError(
                    f"{path}: column {name!r} holds bytes ({schema.field(name).type}): save the images as "
                    "files and give their paths"
                )
        # If none of the columns exists, read all: the caller lists them in its message.
        rows = pyarrow.parquet.read_table(path, columns=names or None).to_pylist()
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise BadRowError(f"{path} is no readable Parquet file ({error}): write it again") from None
    if not rows:
        raise BadRowError(f"{path} holds no rows: give one row a question")
    return rows


def read_csv(path: Path, delimiter: str, encoding: str) -> list[dict | BadRowError]:
    """Read the rows of a CSV file with a header: values are text, empty fields ``None``."""
    delimiter = delimiter.replace("\\t", "\t")  # a shell passes a tab as backslash and t
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"data.delimiter is {delimiter!r}: give one character, such as ',' ';' or '\\t'")
    try:
        with path.open(encoding=encoding, newline="") as file:
            rows = list(_csv_rows(csv.reader(file, delimiter=delimiter, strict=True), path, delimiter))
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except LookupError:
        raise ValueError(f"data.encoding is {encoding!r}: use e.g. utf-8-sig, utf-16 or cp1252") from None
    except UnicodeError as error:
        message = f"{path} is not in {encoding} ({error}): set data.encoding, e.g. to cp1252"
        raise BadRowError(message) from None
    except OSError as error:
        raise BadRowError(f"{path} cannot be read ({error}): give a readable CSV file") from None
    if not rows:
        raise BadRowError(f"{path} holds no rows: give a header and one row a question")
    return rows


def _csv_rows(lines, path: Path, delimiter: str) -> Iterator[dict | BadRowError]:
    start = 1  # first line of the current row
    try:
        header = next(lines, [])
        for name in header:
            if not name.strip() or header.count(name) > 1:
                raise BadRowError(
                    f"{path} has the column {name!r} {header.count(name)} times in its header: give every "
                    "column a name of its own"
                )
        start = lines.line_num + 1
        for fields in lines:
            if len(fields) == len(header):
                yield {name: field or None for name, field in zip(header, fields, strict=True)}
            elif fields:  # an empty line is not a row
                yield BadRowError(
                    f"has {len(fields)} fields where the header has {len(header)} (line {start}: "
                    f"{delimiter.join(fields)!r:.80}): quote a field that contains {delimiter!r}, "
                    "or add what is missing"
                )
            start = lines.line_num + 1
    except csv.Error as error:
        raise BadRowError(
            f"{path} is invalid in the row that starts at line {start} ({error}): close its quotes, and "
            'double a quote inside them, as in "a ""b"" c"'
        ) from None
