"""Files that survive a kill or a full disk: replaced as a unit, or appended to line by line."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a kill or a full disk leaves the old file or the new one."""
    with replace_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` at the end, or is removed after an error."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        sync(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
    sync(path.parent)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write into; it replaces ``folder`` at the end, or is removed after an error.

    A kill leaves ``folder`` as it was, or renamed to ``.NAME.old`` if it falls between the two renames.
    """
    folder = Path(folder).absolute()
    partial, old = (folder.with_name(f".{folder.name}.{mark}") for mark in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder, or a file if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder where the file system can, to disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LineLog:
    """File of JSON lines that only grows. Of a kill it keeps all lines but the one being written.

    One process at a time may read, which creates it and removes an incomplete last line, or append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end, self._lines = 0, 0  # bytes and lines read so far

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Number (from 1) and text of each line that was added since the last call."""
        with self.path.open("a+b") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(self._end)
                    break
                self._end += len(line)
                self._lines += 1
                yield self._lines, line

    def append(self, *rows: Any) -> None:
        """Append each row as a line, and flush to disk."""
        with self.path.open("ab") as file:
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
