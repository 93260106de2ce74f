"""Cache of file digests, and of the images that earlier runs decoded without error.

One small SQLite database per user, shared by processes and runs. All of its contents can be recomputed: a
damaged database is recreated; without one, runs only take longer.
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

_MAX_ROWS = 2_000_000  # per table; the oldest are deleted
_BATCH = 5000  # results between two writes; a killed run loses at most these
_LOCK_TIMEOUT = 10.0  # seconds to wait for another process's write
_TABLES = """
CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decoded (picture TEXT PRIMARY KEY, notes TEXT NOT NULL);
DROP TABLE IF EXISTS good;
"""
_LOCK = threading.Lock()


def cache_folder() -> Path:
    """Folder of this package's caches: ``$HF_HOME/medvlm_r1``."""
    return Path(huggingface_hub.constants.HF_HOME) / "medvlm_r1"


class DigestCache:
    """Digests of unchanged files, and keys of images that decoded without error ("good"), with notes on them.

    Writes to the database happen in batches and at the end of a ``with`` block. Threads and forked processes
    may share one instance.

    Args:
        path: the database. Default: ``images.sqlite`` in :func:`cache_folder`.
        batch: number of results between two writes.
    """

    def __init__(self, path: Path | None = None, batch: int = _BATCH) -> None:
        self.path, self.batch = path or cache_folder() / "images.sqlite", batch
        self._digests: dict[bytes, tuple[str, str]] = {}
        self._good: dict[str, str] = {}
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
        """Return the SHA-256 of a file; read it if its digest is unknown or it has changed.

        Returns:
            ``None`` if the file is missing or changes while it is read, or, under ``unread``, would be read.
        """
        compute = None if unread else lambda: file_digest(file)
        return self._digest(file, os.fsencode(os.path.abspath(file)), compute)

    def digest_inside(
        self, file: Path, member: str, read: Callable[[], bytes], unread: bool = False
    ) -> str | None:
        """Return the SHA-256 of a member of a file; otherwise as :meth:`digest`."""
        name = os.fsencode(os.path.abspath(file)) + b"\0" + os.fsencode(member)
        compute = None if unread else lambda: hashlib.sha256(read()).hexdigest()
        return self._digest(file, name, compute)

    def notes(self, key: str) -> str | None:
        """Return what was noted about the image with this key; ``None`` if it did not decode yet."""
        if key in self._good:
            return self._good[key]
        rows = self._select("SELECT notes FROM decoded WHERE picture = ?", key)
        return rows[0][0] if rows else None

    def add_good(self, key: str, notes: str = "") -> None:
        """Record that the image with this key decoded without error, and what was noted about it."""
        with _LOCK:
            self._good[key] = notes
        self._write_batch()

    def write(self) -> None:
        """Write the new results to the database."""
        with _LOCK:
            digests, self._digests = self._digests, {}
            good, self._good = self._good, {}
        if not digests and not good:
            return

        def insert(database: sqlite3.Connection) -> None:
            with database:
                database.execute("BEGIN IMMEDIATE")
                rows = [(path, *entry) for path, entry in digests.items()]
                database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
                database.executemany("INSERT OR IGNORE INTO decoded VALUES (?, ?)", good.items())
                for table in ("digests", "decoded"):
                    last = f"(SELECT max(rowid) FROM {table})"
                    database.execute(f"DELETE FROM {table} WHERE rowid <= {last} - ?", [_MAX_ROWS])

        self._run(insert)

    def _digest(self, file: Path, name: bytes, compute: Callable[[], str] | None) -> str | None:
        if (stamp := _stamp(file)) is None:
            return None
        known = self._digests.get(name) or next(
            iter(self._select("SELECT stamp, digest FROM digests WHERE path = ?", name)), None
        )
        if known and known[0] == stamp:
            return known[1]
        if compute is None:
            return None
        digest = compute()
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
        return self._run(lambda database: database.execute(query, [key]).fetchall()) or ()

    def _run(self, action: Callable[[sqlite3.Connection], Sequence | None]) -> Sequence | None:
        try:
            with _LOCK:
                try:
                    return action(self._database())
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError:
                    self._recreate()
                    return action(self._database())
        except (OSError, sqlite3.Error) as error:  # a full, read-only or locked disk only costs time
            logger.info("%s: image digests are not stored (%s)", self.path, error)
            return None

    def _database(self) -> sqlite3.Connection:
        """Return this process's own connection; an inherited one must be neither used nor closed."""
        if (process := os.getpid()) not in self._databases:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # file names may identify patients
            database = sqlite3.connect(
                self.path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            # After a kill, the next process restores the file from the journal. To sync every write as well
            # (milliseconds each) would protect against a power cut; SQLite detects that damage.
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_TABLES)
            self._databases[process] = database
        return self._databases[process]

    def _recreate(self) -> None:
        logger.info("%s is damaged: creating a new one", self.path)
        self._close()
        for name in (f"{self.path}-journal", self.path):  # the old journal would damage the new file
            Path(name).unlink(missing_ok=True)

    def _close(self) -> None:
        if (database := self._databases.pop(os.getpid(), None)) is not None:
            database.close()


def _stamp(file: Path) -> str | None:
    """Return size, mtime and ctime of a file, or ``None``; copying tools may restore mtime, but not ctime."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
