"""Going on where a run was stopped: checkpoints between two steps, of which one is always whole.

A step follows from weights, optimiser, schedule, step, data position and seed alone. So a run that goes on
from a checkpoint ends with the same weights, metrics and predictions, bit for bit, as one that never stopped.
"""

import logging
import pickle
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medvlm_r1.runs.durable import sync, write_whole

LAST, BEFORE = "last.ckpt", "before.ckpt"
# Files that grow line by line. A checkpoint holds what they were: a run that goes on must not write lines of
# steps that it takes again a second time.
GROWING = ("metrics.csv", "alarms.jsonl")
# Of the state in a checkpoint. It rises when an older checkpoint can no longer be resumed.
VERSION = 2
log = logging.getLogger("medvlm_r1")


class Checkpoints(Callback):
    """Keeps the newest two checkpoints, ``last.ckpt`` and the one before it, ``before.ckpt``.

    They are written between two steps, behind the validation that belongs to the first: what goes on takes
    the next step. A file gets its name when all of it is on disk. SIGTERM has the step and its validation
    end, a checkpoint written, and the training stopped.

    Args:
        folder: where they lie, within the run folder.
        every: steps between two checkpoints.
    """

    def __init__(self, folder: str | Path, every: int = 25) -> None:
        if every < 1:
            raise ValueError(f"callbacks.last.every is {every}: it must be at least 1")
        self.folder, self.every = Path(folder), every
        self._written = 0  # steps done when the newest one was written
        self._between_steps = False  # that is being written
        self._terminated = False
        self._handler: Any = None  # of SIGTERM, before this one's
        self._loaded: dict[str, Any] | None = None
        self._last_is_damaged = False  # so the whole one before it stays until a newer one is whole

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        stopping = self._is_stopping(trainer)
        if module.step > self._written and (stopping or module.step % self.every == 0):
            self.write(trainer, module, between_steps=True)
        if stopping:
            raise SIGTERMException

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Lightning's own would break off a validation, whose first half could not be taken up again.
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._terminate)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.write(trainer, module, between_steps=False)
        if self._is_stopping(trainer):
            raise SIGTERMException

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def _is_stopping(self, trainer: Trainer) -> bool:
        """Whether SIGTERM has reached any rank."""
        return trainer.strategy.reduce_boolean_decision(self._terminated, all=False)

    def _terminate(self, *signal_and_frame: Any) -> None:
        self._terminated = True

    def write(self, trainer: Trainer, module: LightningModule, between_steps: bool) -> None:
        """Write ``last.ckpt``; all ranks call it.

        Raises:
            OSError: the disk is full, for instance. The checkpoints that were there still are.
        """
        for logger in trainer.loggers:
            logger.save()
        self._written, self._between_steps = module.step, between_steps
        partial = self.folder / "last.partial"
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero and partial.is_file():  # DeepSpeed's is a folder
                sync(partial)
        except OSError as error:
            _remove(partial)
            raise OSError(
                error.errno,
                f"no checkpoint of step {module.step} could be written to {self.folder} ({error}); those "
                "before it are whole",
            ) from error
        if trainer.is_global_zero:
            last = self.folder / LAST
            if last.exists() and not self._last_is_damaged:
                if last.is_dir():
                    _remove(self.folder / BEFORE)
                last.replace(self.folder / BEFORE)
            elif last.is_dir():
                _remove(last)
            partial.replace(last)
            sync(self.folder)
        self._last_is_damaged = False
        trainer.strategy.barrier("checkpoint")

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning's own checkpoints are from within a step, which it adds to the count when it loads one.
        epoch = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict")
        if epoch and self._between_steps:
            epoch["_batches_that_stepped"] -= 1

    def state_dict(self) -> dict[str, Any]:
        folder = self.folder.parent
        files = {name: (folder / name).read_text("utf-8") for name in GROWING if (folder / name).exists()}
        return {
            "version": VERSION,
            "files": files,
            "rng": torch.get_rng_state(),
            "written": self._written,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._loaded is None:
            return
        self._written = self._loaded["written"]
        self._last_is_damaged = trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == BEFORE
        torch.set_rng_state(self._loaded["rng"])
        if trainer.is_global_zero:
            self._put_back(trainer, self._loaded["files"])
        self._loaded = None

    def _put_back(self, trainer: Trainer, files: dict[str, str]) -> None:
        """Cut the growing files back to what they were."""
        for name in GROWING:
            path = self.folder.parent / name
            write_whole(path, files[name]) if name in files else path.unlink(missing_ok=True)
        for logger in trainer.loggers:
            writer = logger.experiment
            if hasattr(writer, "metrics_keys") and "metrics.csv" in files:  # it appends under these columns
                writer.metrics_keys = files["metrics.csv"].splitlines()[0].split(",")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checkpoint_of(folder: Path, ckpt_path: str | None, resume: str | None) -> Path | None:
    """The checkpoint that a run goes on from: the file at ``ckpt_path``, or the newest one in its folder.

    Raises:
        ValueError: the one asked for is not there, or damaged.
    """
    if ckpt_path not in (None, "last"):
        path = Path(ckpt_path)
        if not path.exists():
            raise ValueError(f"ckpt_path: there is no {path}")
        if fault := damage(path):
            raise ValueError(f"ckpt_path: {path} is damaged ({fault})")
        if path.is_file() and _version(path) != VERSION:
            raise ValueError(
                f"ckpt_path: an earlier version of medvlm_r1 wrote {path}, and this one cannot resume it: "
                "finish the run with that version, or leave ckpt_path out"
            )
        return path
    found = newest_whole(folder / "checkpoints") if resume or ckpt_path else None
    if ckpt_path and not found:
        raise ValueError(f"ckpt_path=last: there is no checkpoint in {folder / 'checkpoints'}")
    return found


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` that can be read; ``None`` where there is none at all.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    faults = []
    for path in (folder / name for name in (LAST, BEFORE)):
        if not path.exists():
            continue
        if (fault := damage(path)) is None:
            if faults:
                log.warning("%s; resuming from %s, which is intact", "; ".join(faults), path)
            return path
        faults.append(f"{path} is damaged ({fault})")
    if faults:
        raise ValueError(f"{'; '.join(faults)}: start again with overwrite=true")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint: each of its parts has a checksum, and all are compared."""
    if path.is_dir():
        return None  # DeepSpeed looks at its own
    try:
        with zipfile.ZipFile(path) as parts:
            broken = parts.testzip()
        if broken is not None:
            return f"{broken} does not match its checksum"
        _load_meta(path)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        return str(error).split("\n")[0] or type(error).__name__
    return None


def _version(path: Path) -> int:
    """:data:`VERSION` at the time of writing; that of a run without this callback is unknown, and passes."""
    return _load_meta(path).get("callbacks", {}).get("Checkpoints", {"version": VERSION}).get("version", 1)


def _load_meta(path: Path) -> dict[str, Any]:
    """A checkpoint without its tensors' storage."""
    return torch.load(path, map_location="meta", mmap=True, weights_only=True)
