"""The processes of one run: which of them this is, and those that Lightning starts."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from lightning import Trainer

# As torchrun, Lightning and Slurm name a process among processes, and a machine among machines.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# What Lightning sets when it starts the others.
_SET = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_later_rank() -> bool:
    """Whether another process of the same run decides what is written."""
    ranks = (os.environ.get(name, "0") for name in _RANKS)
    return any(rank not in ("", "0") for rank in ranks)


def has_other_ranks() -> bool:
    """Whether torchrun, Slurm or Lightning started this process as one of several of a run."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1


def devices_in_all(*, _root_: DictConfig) -> int:
    """Devices of a run over all its machines.

    Raises:
        ValueError: their number is not given.
    """
    devices, nodes = _root_.trainer.devices, _root_.trainer.num_nodes
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices is {devices}: this strategy needs their number")
    return devices * nodes


@contextmanager
def own_processes(trainer: "Trainer", command: Sequence[str]) -> Iterator[None]:
    """Have the processes that Lightning starts run ``command``, and nothing of them reach the next run.

    It starts them with this process's command line, which in a multirun is that of all runs, or a launcher's.
    """
    arguments, environment, program = sys.argv[:], os.environ.copy(), sys.modules["__main__"]
    spec, program.__spec__ = program.__spec__, None  # else it would start the module that this process runs
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

            started.clear()  # Lightning watches them, and would end this process with a failed one
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name in _SET:
                os.environ.pop(name, None)
            os.environ.update({name: environment[name] for name in _SET if name in environment})


OmegaConf.register_new_resolver(devices_in_all.__name__, devices_in_all)
