"""Processes of one run: the rank of this one, and those that Lightning starts."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Variables in which torchrun, Lightning and Slurm give the rank of a process or of its node.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# Variables that Lightning sets when it starts other processes.
_SET_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_rank_zero() -> bool:
    """``trainer.is_global_zero`` before there is a trainer: this process writes files and prints."""
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


def has_other_ranks() -> bool:
    """Whether torchrun, Slurm or Lightning started this process as one of several of a run."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1


def devices_in_all(*, _root_: DictConfig) -> int:
    """Number of devices of a run over all its nodes."""
    devices, nodes = _root_.trainer.devices, _root_.trainer.num_nodes
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices is {devices}: this strategy needs a number")
    return devices * nodes


@contextmanager
def own_processes(trainer: Any, command: Sequence[str]) -> Iterator[None]:
    """Let Lightning start the other ranks as ``python -m medvlm_r1.run``; end them and undo its settings.

    Args:
        command: the name of the program, which is not used, and its arguments.

    By default it uses the command line of this process: in a multirun, that of all jobs or of a launcher.
    """
    arguments, environment, program = sys.argv[:], os.environ.copy(), sys.modules["__main__"]
    spec, program.__spec__ = program.__spec__, find_spec("medvlm_r1.run")  # the module that Lightning starts
    sys.argv[:] = command
    ended = False
    try:
        yield
        ended = True
    finally:
        sys.argv[:], program.__spec__ = arguments, spec
        started = getattr(trainer.strategy.launcher, "procs", [])
        for process in started:
            if not ended:
                process.kill()
            process.wait()
        if started:
            import torch

            started.clear()  # Lightning would end this process because of a failed one
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name in _SET_BY_LIGHTNING:
                os.environ.pop(name, None)
            os.environ.update({name: environment[name] for name in _SET_BY_LIGHTNING if name in environment})


OmegaConf.register_new_resolver(devices_in_all.__name__, devices_in_all)
