"""What an endpoint has answered so far, on disk as it comes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock


@dataclass(frozen=True)
class CachedResponse:
    """One answer: its text, its tokens as the server counts them, whether it reached the limit."""

    text: str
    tokens: int
    truncated: bool


class EndpointCache:
    """EndpointCompletions by the digest of their request, kept on disk as they come.

    A line is written whole or, where a run was killed, cut off by the next reader. Runs may share the
    file: a question that two of them asked at once is kept once, and both go by that response.

    Args:
        path: a JSON-lines file; ``None`` keeps nothing beyond this process.

    Raises:
        ValueError: a line is no response.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.responses: dict[str, CachedResponse] = {}
        self._read = 0  # bytes of the file that ``responses`` holds
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open():
                pass

    def add(self, key: str, response: CachedResponse, **about: str) -> None:
        """Keep a response, with what a reader of the file wants to know about it."""
        if self.path is None:
            self.responses[key] = response
            return
        with self._open() as file:
            if key not in self.responses:
                row = {"key": key, **about, **asdict(response)}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                self.responses[key], self._read = response, file.tell()

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The file, for this process alone, with everything in it known and no torn line at its end."""
        assert self.path is not None
        with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(self._read)
                    break
                try:
                    row = json.loads(line)
                    response = CachedResponse(row["text"], row["tokens"], row["truncated"])
                    self.responses[row["key"]] = response
                except (ValueError, KeyError, TypeError):
                    raise ValueError(
                        f"{self.path} holds a line at byte {self._read} that is no response: remove the line"
                    ) from None
                self._read += len(line)
            yield file
