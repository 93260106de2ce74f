"""Save the answers of an evaluation batch by batch, so that an interrupted one resumes."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvlm_r1.evaluate.predictions import Prediction
from medvlm_r1.runs.durable import LineLog, write_whole


class Journal:
    """A JSON line per batch, on disk before the next batch starts.

    An incomplete last line is dropped with its batch: batches are answered as a unit, because the other
    questions of a batch can change the last bits of a question's logits. The last batch is always answered
    again, because Lightning skips an evaluation without batches, including its end hooks.

    Args:
        path: the file; the caller deletes it after writing the answers elsewhere.
        of: identifies the evaluation, e.g. by the step of the weights; answers of any other are dropped.
    """

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self.path = path
        self.rows: list[Prediction] = []
        self.totals: Counter[str] = Counter()
        self._log = LineLog(path)
        lines = [line for _, line in self._log.read()]
        if not lines or json.loads(lines[0]) != of:
            lines = [json.dumps(of).encode() + b"\n"]
        lines = lines[: max(1, len(lines) - 1)]
        for line in lines[1:]:
            batch = json.loads(line)
            self.rows += [Prediction(**row) for row in batch["rows"]]
            self.totals = Counter(batch["totals"])
        write_whole(path, b"".join(lines))

    @property
    def answered(self) -> set[tuple[str, str]]:
        """Test set and id of the questions already answered."""
        return {(row.test_set, row.sample_id) for row in self.rows}

    def add(self, rows: Sequence[Prediction], totals: Counter[str]) -> None:
        """Append a batch: its answers, and the run's totals so far."""
        self._log.append({"totals": dict(totals), "rows": [asdict(row) for row in rows]})
