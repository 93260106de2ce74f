"""A callback that sends this process a signal, as Ctrl-C or Slurm would."""

import os
from typing import Any

from lightning import Callback


class Interrupt(Callback):
    """Send ``signal`` at one batch of training (``fit``) or of a test (``test``), ``times`` times."""

    def __init__(self, signal: int, stage: str = "fit", batch: int = 1, times: int = 1) -> None:
        self.signal, self.stage, self.batch, self.times = signal, stage, batch, times

    def _at(self, stage: str, batch: int) -> None:
        for _ in range(self.times if (self.stage, self.batch) == (stage, batch) else 0):
            os.kill(os.getpid(), self.signal)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self._at("fit", index)

    def on_test_batch_start(self, trainer: Any, module: Any, batch: Any, index: int, *_: Any) -> None:
        self._at("test", index)
