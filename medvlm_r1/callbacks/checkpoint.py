"""Checkpoints between two steps, of which one is always intact, and how to resume from them.

A step depends only on weights, optimiser, schedule, step number, data position and seed. So a resumed run
ends as a run that was never stopped: with the same weights, metrics and predictions, bit for bit on a CPU,
and on a GPU up to rounding, because the backward pass of attention adds in varying order.
"""

import logging
import pickle
import signal
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from medvlm_r1.runs.durable import remove, replace_file, sync, write_whole
from medvlm_r1.runs.ranks import is_rank_zero

LAST, BEFORE = "last.ckpt", "before.ckpt"
# Files that grow line by line. A checkpoint holds their text, so that a resumed run does not repeat the lines
# of steps that it repeats.
GROWING = ("metrics.csv", "alarms.jsonl")
# Version of the checkpoint format; it rises when older checkpoints can no longer be resumed.
VERSION = 3
log = logging.getLogger("medvlm_r1")


class Checkpoints(Callback):
    """Keep the newest two checkpoints: ``last.ckpt``, and ``before.ckpt``, the one before it.

    One is written every ``every`` steps into ``folder``, a folder of the run folder: between two steps, after
    the validation of the first, so a resumed run starts with the second. A file gets its name once it is on
    disk. After SIGTERM or Ctrl-C, the current step and its validation end, a checkpoint is written and
    training stops; a second Ctrl-C stops at once.
    """

    def __init__(self, folder: str | Path, every: int = 25) -> None:
        if every < 1:
            raise ValueError(f"callbacks.last.every is {every}: it must be at least 1")
        self.folder, self.every = Path(folder), every
        self._written = 0  # step of the newest checkpoint
        self._between_steps = False  # whether the checkpoint being written is
        self._signal: int | None = None  # that reached this rank and ends training
        self._handlers: dict[int, Any] = {}  # the signal handlers that this callback's replaces
        self._loaded: dict[str, Any] | None = None
        self._last_is_damaged = False  # then before.ckpt stays until a newer checkpoint is on disk

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DirectCheckpointIO()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        stopping = self._is_stopping(trainer)
        if module.step > self._written and (stopping or module.step % self.every == 0):
            self.write(trainer, module, between_steps=True)
        if stopping:
            self._stop()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Lightning's own handler would stop within a validation, which cannot be resumed in the middle.
        if threading.current_thread() is threading.main_thread():
            both = (signal.SIGTERM, signal.SIGINT)
            numbers = [s for s in both if signal.getsignal(s) is not signal.SIG_IGN]
            self._handlers = {s: signal.signal(s, self._received) for s in numbers}

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.write(trainer, module, between_steps=False)
        if self._is_stopping(trainer):
            self._stop()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a library in C has set one
        self._handlers = {}

    def _is_stopping(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def _received(self, number: int, frame: Any) -> None:
        if self._signal == number == signal.SIGINT:
            self._handlers[number](number, frame)
        self._signal = number
        if number == signal.SIGINT and is_rank_zero():
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    def _stop(self) -> NoReturn:
        raise SIGTERMException(128 + (self._signal or signal.SIGTERM))

    def write(self, trainer: Trainer, module: LightningModule, between_steps: bool) -> None:
        """Write ``last.ckpt``; all ranks call it. After an error, earlier checkpoints are intact."""
        for logger in trainer.loggers:
            logger.save()
        self._written, self._between_steps = module.step, between_steps
        partial = self.folder / "last.partial"
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                sync(partial)
        except OSError as error:
            remove(partial)
            failure = f"cannot write the checkpoint of step {module.step} to {self.folder} ({error})"
            raise OSError(error.errno, f"{failure}; earlier checkpoints are intact") from error
        if trainer.is_global_zero:
            last = self.folder / LAST
            if last.exists() and not self._last_is_damaged:
                remove(self.folder / BEFORE)
                last.replace(self.folder / BEFORE)
            else:
                remove(last)
            partial.replace(last)
            sync(self.folder)
        self._last_is_damaged = False
        trainer.strategy.barrier("checkpoint")

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning writes its own checkpoints within a step, and counts that step when it loads one.
        epoch = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict")
        if epoch and self._between_steps:
            epoch["_batches_that_stepped"] -= 1

    def state_dict(self) -> dict[str, Any]:
        folder = self.folder.parent
        files = {name: (folder / name).read_text("utf-8") for name in GROWING if (folder / name).exists()}
        rng = torch.get_rng_state()
        return {"version": VERSION, "files": files, "rng": rng, "written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        files, self._written = loaded["files"], loaded["written"]
        self._last_is_damaged = trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == BEFORE
        torch.set_rng_state(loaded["rng"])
        if not trainer.is_global_zero:
            return
        for name in GROWING:
            path = self.folder.parent / name
            write_whole(path, files[name]) if name in files else path.unlink(missing_ok=True)
        for logger in trainer.loggers:
            writer = logger.experiment
            if hasattr(writer, "metrics_keys") and "metrics.csv" in files:  # its columns when it appends
                writer.metrics_keys = files["metrics.csv"].splitlines()[0].split(",")


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes and reads checkpoints without a copy in the host's memory.

    Reading maps the file: the processes of a machine share its pages.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replace_file(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own, while it handles the file's OSError
                raise error.__context__ or error from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)


def find_checkpoint(folder: Path, ckpt_path: str | None, resume: str | None) -> Path | None:
    """The checkpoint to resume from: the file at ``ckpt_path``, or the newest intact one of a run folder."""
    if ckpt_path not in (None, "last"):
        if not (path := Path(ckpt_path)).exists():
            raise ValueError(f"ckpt_path: there is no {path}")
        if fault := damage(path):
            raise ValueError(f"ckpt_path: {path} is damaged ({fault})")
        checkpoint: dict[str, Any] = {"optimizer_states": []} if path.is_dir() else _load_meta(path)
        if "optimizer_states" not in checkpoint:
            raise ValueError(
                f"ckpt_path: {path} holds weights without the optimiser: name {LAST} or {BEFORE}"
            )
        # a run without this callback has no version, and passes
        callbacks = checkpoint.get("callbacks", {})
        if callbacks.get("Checkpoints", {"version": VERSION}).get("version", 1) != VERSION:
            remedy = "finish the run with that version, or leave ckpt_path out"
            raise ValueError(f"ckpt_path: an earlier version of medvlm_r1 wrote {path}: {remedy}")
        return path
    newest = newest_intact(folder / "checkpoints") if resume or ckpt_path else None
    if ckpt_path and not newest:
        raise ValueError(f"ckpt_path=last: there is no checkpoint in {folder / 'checkpoints'}")
    return newest


def newest_intact(folder: Path) -> Path | None:
    """The newest intact checkpoint in ``folder``; skips a damaged one with a warning, raises if all are."""
    faults = []
    for path in filter(Path.exists, (folder / LAST, folder / BEFORE)):
        if (fault := damage(path)) is None:
            if faults:
                log.warning("%s; resuming from %s, which is intact", "; ".join(faults), path)
            return path
        faults.append(f"{path} is damaged ({fault})")
    if faults:
        raise ValueError(f"{'; '.join(faults)}: start again with overwrite=true")
    return None


def damage(path: Path) -> str | None:
    """What is damaged in a checkpoint, by the checksums of its parts; ``None`` if it is intact."""
    if path.is_dir():
        return None  # shards (save_distributed_checkpoint=true), which loading checks
    try:
        with zipfile.ZipFile(path) as parts:
            if (broken := parts.testzip()) is not None:
                return f"{broken} does not match its checksum"
        _load_meta(path)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        return str(error).split("\n")[0] or type(error).__name__
    return None


def load_weights(module: LightningModule, path: str) -> None:
    """As ``load_state_dict``, but also for weights split over devices."""
    weights = DirectCheckpointIO().load_checkpoint(path, weights_only=True)["state_dict"]
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def _load_meta(path: Path) -> dict[str, Any]:
    """A checkpoint without its tensors' storage."""
    return torch.load(path, map_location="meta", mmap=True, weights_only=True)
