"""Responses of an endpoint on disk, so that no request is repeated."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from filelock import FileLock

from medvlm_r1.runs.durable import LineLog


@dataclass(frozen=True)
class CachedResponse:
    """A completion, its length by the server's count, and whether it reached the token limit."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class CachedScores:
    """Log-probability of a completion with each option's letter in the place of the answer."""

    option_logprobs: list[float]


class EndpointCache:
    """Responses by the digest of their request.

    Several runs may share the file at the same time: the first response to a request counts for all.

    Args:
        path: a JSON-lines file; ``None`` stores the responses in memory alone.

    Raises:
        ValueError: a line is not a response.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.responses: dict[str, CachedResponse | CachedScores] = {}
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log = LineLog(path)
            with FileLock(f"{path}.lock"):
                self._read()

    def add(self, key: str, response: CachedResponse | CachedScores, **about: str) -> None:
        """Store a response; ``about`` is further information for readers of the file."""
        if self.path is None:
            self.responses[key] = response
            return
        with FileLock(f"{self.path}.lock"):
            self._read()
            if key not in self.responses:
                self._log.append({"key": key, **about, **asdict(response)})
                self.responses[key] = response

    def _read(self) -> None:
        """Read the lines added since the last call, by any process."""
        for number, line in self._log.read():
            try:
                row = json.loads(line)
                kind = CachedScores if "option_logprobs" in row else CachedResponse
                self.responses[row["key"]] = kind(**{field.name: row[field.name] for field in fields(kind)})
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path} line {number} is not a response: remove the line") from None
