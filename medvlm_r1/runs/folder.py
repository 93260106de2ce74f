"""Names of run folders, as resolvers of ``conf/config.yaml``; Hydra's launchers load this: keep it light."""

import hashlib
import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from medvlm_r1.runs.durable import remove
from medvlm_r1.runs.ranks import has_other_ranks, is_rank_zero
from medvlm_r1.runs.status import ATTEMPTS, LOCK, OLD_ATTEMPTS, is_locked, tracking_id

_UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')
_LONGEST_NAME = 200  # bytes; file systems take 255, with suffixes
# Overrides that do not change the result stay out of the run's name.
UNNAMED = ("experiment", "seed", "sweep", "overwrite", "logger", "workers", "plan", "card", "controls")
UNNAMED += ("image_cache", "image_cache.folder", "image_cache.limit", "resume", "retry", "ckpt_path")
UNNAMED += ("model.url", "model.api_key_variable", "model.concurrency", "model.retries", "model.timeout")
UNNAMED += ("model.cache", "paths.outputs", "paths.cache", "optimized_metric", "tags", "track")
UNNAMED += ("hparams_search", "evaluation.reading")


def run_name(*, _root_: DictConfig) -> str:
    """``<experiment>-<overrides>-seed<k>``; without a time, so the same command has the same name.

    Hydra reads the name without quotes: ``model=tiny`` becomes ``model_tiny``.
    A job of a multirun always resumes: it keeps the folder that an earlier version named with ``=``.
    """
    name = _name(_root_)
    if not _root_.get("sweep"):
        return name
    return _existing(Path(_root_.paths.outputs) / "sweeps" / str(_root_.sweep), name, _root_).name


def _name(root: DictConfig, equals: bool = False) -> str:
    """The name of a run; with ``equals``, as earlier versions wrote it."""
    choices, overrides = root.hydra.runtime.choices, root.hydra.overrides.task
    keys = {o: re.split(r"[=@]", o.lstrip("+~"))[0] for o in overrides}
    named = [o for o, key in keys.items() if key not in UNNAMED and not key.startswith("logger.")]
    text = "-".join(sorted(o.lstrip("+") for o in named))
    slug = re.sub(r"[^\w.=+-]+" if equals else r"[^\w.+-]+", "_", text, flags=0 if equals else re.ASCII)
    if len(slug) > 80 or not (equals or text.isascii()):
        slug = slug[:60] + "-" + hashlib.sha256((slug if equals else text).encode()).hexdigest()[:8]
    name = "-".join(filter(None, [choices.get("experiment", "default"), slug, f"seed{root.seed}"]))
    return name.replace("/", "_")  # of an experiment in a folder of experiments


def _existing(parent: Path, name: str, root: DictConfig) -> Path:
    """The run's folder in ``parent``: that of an earlier version, if there is one and none of this."""
    folder, earlier = parent / name, parent / _name(root, equals=True)
    return earlier if earlier.is_dir() and not folder.exists() else folder


def new_run_folder(*, _root_: DictConfig) -> str:
    """Folder of a single run."""
    again = bool(_root_.overwrite or _root_.resume or _root_.ckpt_path)
    parent, name = Path(_root_.paths.outputs) / "runs", _name(_root_)
    return str(free_folder(_existing(parent, name, _root_) if again else parent / name, again))


def run_log(folder: str) -> str:
    """Path of the log file; only rank 0 writes one."""
    return f"{folder}/run.log" if is_rank_zero() else os.devnull


def free_folder(folder: Path, reuse: bool) -> Path:
    """``folder`` if ``reuse``, else the first of folder, folder-2, ... that holds no run."""
    number, free = 1, folder
    while not reuse:
        has_files = any((free / name).exists() for name in ("metrics.csv", "metrics.json", "checkpoints"))
        # Only its lock shows a new run. One of several ranks ignores it: its own rank 0 may hold it.
        if not has_files and (has_other_ranks() or not is_locked(free)):
            break
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def empty(folder: Path, keep_samples: bool = False) -> None:
    """Remove the files of an earlier run; with ``keep_samples``, not those of its rejection sampling."""
    # first: a folder that is half removed must not count as finished
    (folder / "metrics.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if keep_samples and path.match("sampled-*.jsonl"):
            continue
        if path.name not in (".hydra", "config.yaml", "run.log", LOCK, ATTEMPTS, OLD_ATTEMPTS):
            remove(path)


def image_path(folder: Path, sample_id: str) -> Path:
    """Path of a question's image: ``<sample id>.png``, without what a file name cannot hold.

    An id may come from a data file: it may be long, or a path that leads out of the folder.
    """
    name = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", sample_id)
    if len(name.encode()) > _LONGEST_NAME:
        name = name.encode()[:100].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()
    return folder / f"{name}.png"


def tracked(key: str, *, _root_: DictConfig) -> str | None:
    """``name``, ``group`` or ``id`` of the run in W&B and MLflow; no id before its first attempt."""
    if key == "group":
        return _root_.sweep or _root_.experiment
    if not (folder := _root_.run_folder):
        return None
    return tracking_id(Path(folder)) if key == "id" else Path(folder).name


for resolver in (run_name, new_run_folder, run_log, tracked):
    OmegaConf.register_new_resolver(resolver.__name__, resolver)
