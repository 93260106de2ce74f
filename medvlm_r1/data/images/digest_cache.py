"""What earlier runs found out about image files: the digest of each, and which pictures decode.

One small SQLite database of the user's, shared by the processes and runs that come to it. It holds nothing
that cannot be found again: one that is damaged is begun anew, one that cannot be opened costs time alone.
"""

import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub.constants

logger = logging.getLogger(__name__)

_KEPT = 2_000_000  # rows of a table, the latest
_BATCH = 5000  # findings between two writes: what a killed run loses
_WAIT = 10.0  # seconds for another process that writes
_TABLES = """
CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS good (picture TEXT PRIMARY KEY);
"""
_LOCK = threading.Lock()


def cache_folder() -> Path:
    """Where this package keeps what it may rebuild: beside the hub client's cache."""
    return Path(huggingface_hub.constants.HF_HOME) / "medvlm_r1"


class DigestCache:
    """Digests of files that have not changed since they were read, and pictures that were found good.

    Findings are written in batches, and at the end of a ``with`` block. Threads may share it, and so may
    processes that are forked from this one.

    Args:
        path: the database. Default: ``images.sqlite`` in :func:`cache_folder`.
        batch: findings between two writes.
    """

    def __init__(self, path: Path | None = None, batch: int = _BATCH) -> None:
        self.path, self.batch = path or cache_folder() / "images.sqlite", batch
        self._digests: dict[bytes, tuple[str, str]] = {}
        self._good: set[str] = set()
        self._databases: dict[int, sqlite3.Connection] = {}

    def __getstate__(self) -> dict:
        return {"path": self.path, "batch": self.batch}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __enter__(self) -> "DigestCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
        self._close()

    def digest(self, file: Path, unread: bool = False) -> str | None:
        """SHA-256 of a file.

        Args:
            file: read where it is not known.
            unread: do not read it then.

        Returns:
            ``None`` where there is no file, where it is not known and not read, or while it is being written.
        """
        find = None if unread else lambda: file_digest(file)
        return self._digest(file, os.fsencode(os.path.abspath(file)), find)

    def digest_inside(
        self, file: Path, member: str, read: Callable[[], bytes], unread: bool = False
    ) -> str | None:
        """SHA-256 of a part of a file; otherwise as :meth:`digest`."""
        name = os.fsencode(os.path.abspath(file)) + b"\0" + os.fsencode(member)
        find = None if unread else lambda: hashlib.sha256(read()).hexdigest()
        return self._digest(file, name, find)

    def is_good(self, picture: str) -> bool:
        """Whether the picture with this key was found good."""
        return picture in self._good or bool(self._select("SELECT 1 FROM good WHERE picture = ?", picture))

    def add_good(self, picture: str) -> None:
        """Keep that the picture with this key was found good."""
        with _LOCK:
            self._good.add(picture)
        self._write_batch()

    def write(self) -> None:
        """Keep on disk what was found since the last time, beside what other runs keep."""
        with _LOCK:
            digests, self._digests = self._digests, {}
            good, self._good = self._good, set()
        if not digests and not good:
            return

        def insert(database: sqlite3.Connection) -> None:
            with database:
                database.execute("BEGIN IMMEDIATE")
                rows = [(path, *found) for path, found in digests.items()]
                database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
                database.executemany("INSERT OR IGNORE INTO good VALUES (?)", [(key,) for key in good])
                for table in ("digests", "good"):
                    database.execute(
                        f"DELETE FROM {table} WHERE rowid <= (SELECT max(rowid) FROM {table}) - ?", [_KEPT]
                    )

        self._ask(insert)

    def _digest(self, file: Path, name: bytes, find: Callable[[], str] | None) -> str | None:
        if (stamp := _stamp(file)) is None:
            return None
        known = self._digests.get(name) or next(
            iter(self._select("SELECT stamp, digest FROM digests WHERE path = ?", name)), None
        )
        if known and known[0] == stamp:
            return known[1]
        if find is None:
            return None
        digest = find()
        if _stamp(file) != stamp:
            return None
        with _LOCK:
            self._digests[name] = (stamp, digest)
        self._write_batch()
        return digest

    def _write_batch(self) -> None:
        if len(self._digests) + len(self._good) >= self.batch:
            self.write()

    def _select(self, query: str, key: str | bytes) -> Sequence[tuple]:
        return self._ask(lambda database: database.execute(query, [key]).fetchall()) or ()

    def _ask(self, action: Callable[[sqlite3.Connection], Sequence | None]) -> Sequence | None:
        try:
            with _LOCK:
                try:
                    return action(self._database())
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError:
                    self._begin_anew()
                    return action(self._database())
        except (OSError, sqlite3.Error) as error:  # a full, read-only or busy home costs time alone
            logger.info("%s: what is found of images is not kept (%s)", self.path, error)
            return None

    def _database(self) -> sqlite3.Connection:
        """A connection of this process's own; one that was inherited must be neither used nor closed."""
        if (process := os.getpid()) not in self._databases:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # names of files may name patients
            database = sqlite3.connect(
                self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
            # A killed process leaves a journal, from which the next one mends the file. To wait for the
            # disk too would guard against a lost machine, at milliseconds a write; that damage is found.
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_TABLES)
            self._databases[process] = database
        return self._databases[process]

    def _begin_anew(self) -> None:
        logger.info("%s is damaged: begun anew", self.path)
        self._close()
        for name in (f"{self.path}-journal", self.path):  # its journal would damage the new file
            Path(name).unlink(missing_ok=True)

    def _close(self) -> None:
        if (database := self._databases.pop(os.getpid(), None)) is not None:
            database.close()


def _stamp(file: Path) -> str | None:
    """Size, time of change, and time of change of the entry, which no copying tool sets back."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
