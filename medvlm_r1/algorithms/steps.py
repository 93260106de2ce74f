"""Steps and updates: a step is a rollout of ``prompts_per_step`` questions, an update one optimiser step.

A step is a batch to Lightning, and has ``num_iterations`` x ``num_minibatches`` updates. Schedule, warm-up,
intervals, logs and file names count steps. Lightning's own ``trainer.max_steps``, ``trainer.min_steps`` and
``global_step`` count updates.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("medvlm_r1")


@dataclass(frozen=True)
class RunLength:
    """Length of a run.

    Attributes:
        per_epoch: steps of an epoch.
        total: steps of the run.
        updates_per_step: calls of the optimiser in a step.
    """

    per_epoch: int
    total: int
    updates_per_step: int


def total_steps(per_epoch: int, max_epochs: int | None, max_updates: int, updates_per_step: int) -> int:
    """Steps of a run that ends after ``max_epochs``, or within the step of update ``max_updates``.

    Lightning looks at its limits between two steps, so the last step takes all of its updates.

    Args:
        max_epochs, max_updates: -1 is no limit, but not of both; so is ``None`` epochs.
    """
    limits = []
    if max_updates != -1:
        limits.append(math.ceil(max_updates / updates_per_step))
    if max_epochs is not None and max_epochs != -1:
        limits.append(per_epoch * max_epochs)
    return min(limits)


def run_length(config: Mapping[str, Any], questions: int, prompts_per_step: int) -> RunLength:
    """Read the length of a run with so many training questions from its resolved configuration."""
    method, trainer = config["method"], config["trainer"]
    updates = method.get("num_iterations", 1) * method.get("num_minibatches", 1)
    per_epoch = questions // prompts_per_step
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    if limit is not None:
        per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
    total = total_steps(per_epoch, trainer["max_epochs"], trainer["max_steps"], updates)
    return RunLength(per_epoch, total, updates)


def check_length(config: Mapping[str, Any], questions: int) -> None:
    """Check a training run's length before its weights are loaded; warn of a schedule that it does not reach.

    Args:
        config: of the run.
        questions: number of training questions.

    Raises:
        ValueError: an epoch has no step, or fewer than there are between two validations.
    """
    if "optim" not in config["method"]:
        return
    prompts, trainer = config["model"]["recipe"]["prompts_per_step"], config["trainer"]
    if questions < prompts:
        raise ValueError(
            f"{questions} training questions do not fill a step of {prompts}: lower "
            "model.recipe.prompts_per_step"
        )
    length = run_length(config, questions, prompts)
    if length.per_epoch == 0:
        raise ValueError(
            f"trainer.limit_train_batches is {trainer.get('limit_train_batches')}, which leaves none of the "
            f"{questions // prompts} steps of an epoch: raise it"
        )
    interval = trainer.get("val_check_interval")
    is_count = interval is not None and (isinstance(interval, int) or interval > 1)
    if is_count and interval > length.per_epoch and trainer.get("check_val_every_n_epoch", 1) is not None:
        raise ValueError(
            f"trainer.val_check_interval is {interval:g}, and an epoch has {length.per_epoch} steps: lower "
            "it, give a fraction such as 0.5, or count over epochs with +trainer.check_val_every_n_epoch=null"
        )
    warmup = config["method"]["optim"].get("warmup_steps", 0)
    if warmup >= length.total:
        log.warning(
            "method.optim.warmup_steps is %d and the run has %d steps: the learning rate rises to %.2g of "
            "its peak and never reaches it; give fewer",
            *(warmup, length.total, length.total / (warmup + 1)),
        )
    if trainer.get("max_time") is not None:
        log.warning(
            "trainer.max_time may end the run before its schedule, which is that of %d steps", length.total
        )
