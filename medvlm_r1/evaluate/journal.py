"""Save the answers of an evaluation batch by batch, so that an interrupted one resumes."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvlm_r1.evaluate.predictions import Prediction


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
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if not whole or json.loads(whole[0]) != of:
            whole = [json.dumps(of).encode() + b"\n"]
        whole = whole[: max(1, len(whole) - 1)]
        for line in whole[1:]:
            batch = json.loads(line)
            self.rows += [Prediction(**row) for row in batch["rows"]]
            self.totals = Counter(batch["totals"])
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            file.writelines(whole)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._file = path.open("ab")

    @property
    def answered(self) -> set[tuple[str, str]]:
        """Test set and id of the questions already answered."""
        return {(row.test_set, row.sample_id) for row in self.rows}

    def add(self, rows: Sequence[Prediction], totals: Counter[str]) -> None:
        """Append a batch: its answers, and the run's totals so far."""
        line = {"totals": dict(totals), "rows": [asdict(row) for row in rows]}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
