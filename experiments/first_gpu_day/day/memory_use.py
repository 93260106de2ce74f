"""Memory over many steps, and by phase against the plan."""

from pathlib import Path
from typing import Any

import torch
from build_run import built
from hydra.utils import instantiate
from lightning import Callback
from omegaconf import OmegaConf
from timing import StepTimer

from day.base import Day, Result, gb, result
from day.work import MOST_RECORDINGS, config, end_often, use_capture
from medvlm_r1.plan.memory import CONTEXT  # not in the allocator
from medvlm_r1.plan.plan import plan
from medvlm_r1.plan.workload import read_workload

# Part of a step -> phase of the plan.
PHASES = {"sample": "sampling", "reference": "reference", "train": "training", "update": "update"}


class MemoryOfSteps(Callback):
    """Bytes allocated and reserved after each step; on a CPU the process's resident memory."""

    def __init__(self) -> None:
        self.allocated: list[float] = []
        self.reserved: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if torch.cuda.is_available():
            self.allocated.append(torch.cuda.memory_allocated())
            self.reserved.append(torch.cuda.memory_reserved())
        else:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.allocated.append(pages * 4096)
            self.reserved.append(pages * 4096)


def memory(day: Day) -> Result:
    """Take 100 short steps of the paper's run."""
    steps, tokens = day.pick(100, 8), day.pick(64, 16)
    cfg = config(
        day,
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=-1",
        "+trainer.limit_val_batches=0",
        f"model.recipe.max_completion_tokens={tokens}",
        f"data.train.n={day.pick(400, 64)}",
        f"workers={day.pick(6, 0)}",
    )
    seen = MemoryOfSteps()
    module, data, trainer = built(cfg, seen)
    use_capture(day, module)
    end_often(day, module.policy)
    timer = StepTimer(module)
    trainer.fit(module, data)
    chosen = [n for n in day.pick((1, 30, 100), (1, 4, 8)) if n <= len(seen.allocated)]
    table = [
        {"after step": n, "allocated GB": gb(seen.allocated[n - 1]), "reserved GB": gb(seen.reserved[n - 1])}
        for n in chosen
    ]
    peaks, recordings = against_plan(cfg, timer), module.engine.recorder.count
    figures = {
        "after steps": table,
        "peak by phase": peaks,
        "recordings": recordings,
        "keys and values GB": gb(module.engine.recorder.memory_bytes),
        "seconds of a step, median": sorted(timer.seconds["step"])[steps // 2],
    }
    _, middle, last = table
    bounds = {
        f"{steps} steps": len(seen.allocated) == steps,
        f"allocated grows by at most 0.1 GB from step {chosen[1]} to {chosen[2]}": last["allocated GB"]
        <= middle["allocated GB"] + 0.1,
        f"reserved grows by at most 2 GB from step {chosen[1]} to {chosen[2]}": last["reserved GB"]
        <= middle["reserved GB"] + 2,
        f"1 to {MOST_RECORDINGS} recordings": 0 < recordings <= MOST_RECORDINGS,
    }
    if not day.rehearsal:
        bounds |= within_plan(peaks)
    return result(figures, bounds)


def against_plan(cfg: Any, timer: StepTimer) -> list[dict[str, Any]]:
    """Measured peaks of the parts of a step beside those that the plan counts."""
    nodes = (cfg.model.recipe, cfg.model.tuning, cfg.prompt, cfg.rollout)
    parts = [instantiate(node) for node in nodes]
    planned = plan(read_workload(OmegaConf.to_container(cfg, resolve=True), *parts), timed=False)
    return [
        {
            "phase": phase,
            "measured GB": gb(timer.peaks[part]),
            "planned GB": gb(planned.peaks[phase] - CONTEXT),
        }
        for part, phase in PHASES.items()
        if phase in planned.peaks and part in timer.peaks
    ]


def within_plan(peaks: list[dict[str, Any]]) -> dict[str, bool]:
    """The bound on the rows of :func:`against_plan`."""
    within = all(row["measured GB"] <= 1.1 * row["planned GB"] for row in peaks)
    return {"no phase's peak is above the plan's by more than 10 %": within}
