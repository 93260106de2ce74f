"""The folder that a run writes to: its name, whether it is free, and which process of the run decides.

Composing a configuration asks for these by name (``conf/config.yaml``), so nothing heavy is imported.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

from omegaconf import DictConfig

OUTPUTS = Path("outputs")
# Overrides that do not make another experiment stay out of the run's name.
UNNAMED = ("experiment", "seed", "sweep", "overwrite", "logger", "workers", "plan", "card", "controls")
UNNAMED += ("pictures", "pictures.folder", "pictures.limit", "resume", "ckpt_path")
UNNAMED += tuple(
    f"model.{key}" for key in ("url", "api_key_variable", "concurrency", "retries", "timeout", "replies")
)
# As torchrun, Lightning and Slurm name a process among processes, and a machine among machines.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def run_name(*, _root_: DictConfig) -> str:
    """``<experiment>-<overrides>-seed<k>``; no clock, so that the same command has the same name."""
    choices, overrides = _root_.hydra.runtime.choices, _root_.hydra.overrides.task
    named = [o for o in overrides if re.split(r"[=@]", o.lstrip("+~"))[0] not in UNNAMED]
    slug = re.sub(r"[^\w.=+-]+", "_", "-".join(sorted(o.lstrip("+") for o in named)))
    if len(slug) > 80:
        slug = slug[:60] + "-" + hashlib.sha256(slug.encode()).hexdigest()[:8]
    return "-".join(filter(None, [choices.get("experiment", "default"), slug, f"seed{_root_.seed}"]))


def new_run_folder(*, _root_: DictConfig) -> str:
    """The folder of a single run."""
    return str(free_folder(OUTPUTS / "runs" / run_name(_root_=_root_), reused(_root_)))


def new_sweep_folder(*, _root_: DictConfig) -> str:
    """The folder of a multirun.

    Raises:
        ValueError: the multirun has no name.
    """
    if not _root_.sweep:
        raise ValueError("a multirun needs a name for its folder: add sweep=NAME")
    return str(OUTPUTS / "sweeps" / _root_.sweep)


def new_run_name(*, _root_: DictConfig) -> str:
    """The name of one job's folder within that of its multirun."""
    sweep = OUTPUTS / "sweeps" / _root_.sweep
    return free_folder(sweep / run_name(_root_=_root_), reused(_root_)).name


def reused(cfg: DictConfig) -> bool:
    """Whether the run goes into the folder of the last one with its name."""
    return bool(cfg.overwrite or cfg.resume or cfg.ckpt_path)


def run_log(folder: str) -> str:
    """Where the console's lines are kept: one process of a run writes them."""
    return os.devnull if is_later_rank() else f"{folder}/run.log"


def is_later_rank() -> bool:
    """Whether another process of the same run decides what is written."""
    ranks = (os.environ.get(name, "0") for name in _RANKS)
    return any(rank not in ("", "0") for rank in ranks)


def free_folder(folder: Path, reuse: bool) -> Path:
    """``folder`` if it may be used again; else the first of folder, folder-2, ... that is not in use."""
    if reuse:
        return folder
    number, candidate = 1, folder
    while any((candidate / name).exists() for name in ("metrics.csv", "metrics.json", "checkpoints")):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def empty(folder: Path) -> None:
    """Remove what an earlier run left; called when this one is built, so that a mistake deletes nothing."""
    for path in folder.iterdir():
        if path.name not in (".hydra", "config.yaml", "run.log"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
