"""Rows of CSV files, as spreadsheets, pandas and R write them.

The csv module reads in strict mode, since pandas silently pads short rows and takes a surplus first field
for an index.
"""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.shorten import clip, shorten

UTF8 = "utf-8-sig"
"""The default encoding: UTF-8 with or without a byte order mark; a mark of UTF-16 or UTF-32 precedes it."""
_FIELD_LIMIT = 1 << 26  # characters of a field; the module's own limit is 131,072
# UTF-32's little-endian mark begins with UTF-16's
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's first line that names the delimiter
_OTHER_DELIMITERS = ";\t|,"


def encoding_of(path: Path, encoding: str = UTF8) -> str:
    """Return the encoding that a file's byte order mark names, if ``encoding`` is the default."""
    if encoding.lower().replace("_", "-") not in ("utf-8", UTF8):
        return encoding
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), UTF8)


def read_csv(path: Path, delimiter: str | None, encoding: str = UTF8) -> list[dict | BadRowError]:
    """Read the rows of a CSV file with a header: values are text, empty fields ``None``.

    Columns without a name, such as pandas' index or one behind a trailing delimiter, are left out.

    Args:
        delimiter: ``None`` takes the one that a first line ``sep=;`` names, else a comma (in .tsv and .tab
            files a tab), or where the header then has one column only, the one that splits it.

    Raises:
        BadRowError: the file is missing, unreadable, damaged or empty.
        ValueError: ``delimiter`` or ``encoding`` is invalid.
    """
    if delimiter is not None:
        delimiter = delimiter.replace("\\t", "\t")  # a shell passes a tab as backslash and t
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ValueError(f"data.delimiter is {delimiter!r}: give one character, such as ',' ';' or '\\t'")
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        encoding = encoding_of(path, encoding)
        with path.open(encoding=encoding, newline="") as file:
            rows = list(_rows(file, path, delimiter))
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except LookupError:
        raise ValueError(f"data.encoding is {encoding!r}: use e.g. utf-8-sig, utf-16 or cp1252") from None
    except UnicodeError as error:
        message = f"{path} is not in {encoding} ({clip(str(error))}): set data.encoding, e.g. to cp1252"
        raise BadRowError(message) from None
    except OSError as error:
        raise BadRowError(f"{path} cannot be read ({error}): give a readable CSV file") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise BadRowError(f"{path} holds no rows: give a header and one row a question")
    return rows


def _rows(file: TextIO, path: Path, delimiter: str | None) -> Iterator[dict | BadRowError]:
    first, above = file.readline(), 0
    if sep := _SEP_LINE.fullmatch(first):
        delimiter, first, above = delimiter or sep[1], file.readline(), 1
    if "\0" in first:
        raise BadRowError(f"{path} holds NUL characters: set data.encoding, e.g. to utf-16-le")
    delimiter = delimiter or _delimiter_in(first, "," if path.suffix.lower() == ".csv" else "\t")
    spaced = 0 < first.count(delimiter) == first.count(f"{delimiter} ")  # "image, question"
    lines = csv.reader(chain([first], file), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    start = above + 1  # first line of the current row
    try:
        header = [name.strip("\ufeff \t") for name in next((fields for fields in lines if fields), [])]
        for name, count in Counter(filter(None, header)).items():
            if count > 1:
                raise BadRowError(
                    f"{path} has the column {shorten(name)} {count} times in its header: give every column a "
                    "name of its own"
                )
        needed = max((i + 1 for i, name in enumerate(header) if name), default=0)
        start = above + lines.line_num + 1
        for fields in lines:
            if len(fields) >= needed and not any(fields[len(header) :]):
                row = {name: field or None for name, field in zip(header, fields, strict=False) if name}
                if any(value and not value.isspace() for value in row.values()):
                    yield row
            elif any(fields):  # an empty line is not a row
                yield BadRowError(
                    f"has {len(fields)} fields where the header has {len(header)} (line {start}: "
                    f"{shorten(delimiter.join(fields))}): quote a field that contains {delimiter!r}, "
                    "or add what is missing"
                )
            start = above + lines.line_num + 1
    except csv.Error as error:
        raise BadRowError(
            f"{path} is invalid in the row that starts at line {start} ({error}): close its quotes, and "
            'double a quote inside them, as in "a ""b"" c"'
        ) from None


def _delimiter_in(header: str, usual: str) -> str:
    """Return the usual delimiter, or where the header has none of it, the most frequent other one."""
    found = [other for other in _OTHER_DELIMITERS if other in header]
    return usual if usual in header or not found else max(found, key=header.count)
