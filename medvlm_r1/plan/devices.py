"""The same run on other numbers of GPUs."""

import dataclasses

from medvlm_r1.plan.plan import Plan, measure_model, plan_on
from medvlm_r1.plan.workload import Workload

COUNTS = (1, 2, 4, 8)


def device_plans(workload: Workload) -> list[Plan]:
    """Plan the run on 1, 2, 4 and 8 GPUs of one machine, with each trainer that works there.

    Left out are numbers of devices that cannot share the prompts of a step evenly.
    """
    meter, inventory = measure_model(workload)
    refused = refused_counts(workload)
    # FSDP cannot split 4-bit weights or 8-bit moments, and an evaluation has nothing to split
    splits = not (workload.tuning.quantize or "8bit" in workload.optimizer or workload.method == "zero_shot")
    plans = []
    for count in COUNTS:
        if count not in refused:
            for strategy in ["single"] if count == 1 else ["ddp", "fsdp"] if splits else ["ddp"]:
                other = dataclasses.replace(workload, strategy=strategy, world_size=count)
                plans.append(plan_on(other, meter, inventory))
    return plans


def refused_counts(workload: Workload) -> list[int]:
    """Numbers of devices that cannot share the prompts of a training step evenly."""
    if workload.method == "zero_shot":
        return []
    return [count for count in COUNTS if workload.recipe.prompts_per_step % count]


def device_hours(made: Plan) -> float:
    """GPU-hours of the run; those of one step if the number of questions is unknown."""
    seconds = made.step_seconds if made.seconds is None else made.seconds
    return made.workload.world_size * seconds / 3600


def cheapest(plans: list[Plan]) -> Plan | None:
    """The plan that fits and takes the fewest GPU-hours."""
    return min((made for made in plans if made.fits), key=device_hours, default=None)
