"""Answers of an evaluation, kept as they come: one that is stopped goes on behind the last whole batch."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvlm_r1.evaluate.predictions import Prediction


class Journal:
    """One line a batch, on disk before the next batch begins.

    A line that was cut off is dropped, and with it its batch: batches are answered whole, because what stands
    beside a question can move the last bits of its logits. The last batch is answered again, because an
    evaluation without a question left would be skipped by Lightning with all that belongs to its end.

    Args:
        path: of the file; whoever has written the answers elsewhere removes it.
        of: what the answers depend on, such as the step of the weights; those of something else are dropped.
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
            kept = json.loads(line)
            self.rows += [Prediction(**row) for row in kept["rows"]]
            self.totals = Counter(kept["totals"])
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            file.writelines(whole)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._file = path.open("ab")

    @property
    def answered(self) -> set[tuple[str, str]]:
        """Test set and id of the questions that need no answer any more."""
        return {(row.test_set, row.sample_id) for row in self.rows}

    def add(self, rows: Sequence[Prediction], totals: Counter[str]) -> None:
        """Keep a batch: its answers, and what was computed up to its end."""
        line = {"totals": dict(totals), "rows": [asdict(row) for row in rows]}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
