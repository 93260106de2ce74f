"""What an endpoint has answered so far, on disk as it comes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from medvlm_r1.runs.durable import LineLog


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
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log = LineLog(path)
            with FileLock(f"{path}.lock"):
                self._read()

    def add(self, key: str, response: CachedResponse, **about: str) -> None:
        """Keep a response, with what a reader of the file wants to know about it."""
        if self.path is None:
            self.responses[key] = response
            return
        with FileLock(f"{self.path}.lock"):
            self._read()
            if key not in self.responses:
                self._log.append({"key": key, **about, **asdict(response)})
                self.responses[key] = response

    def _read(self) -> None:
        """Read the lines that this process or others have added."""
        for number, line in self._log.read():
            try:
                row = json.loads(line)
                response = CachedResponse(row["text"], row["tokens"], row["truncated"])
                self.responses[row["key"]] = response
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path} line {number} is no response: remove the line") from None
