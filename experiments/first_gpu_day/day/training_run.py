"""Whole runs: zero-shot, the genuine size, 20 steps of GRPO, kill and resume."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from build_run import built, composed
from hydra.utils import instantiate
from lightning import Callback
from processes import in_its_own_process
from timing import StepTimer, clock

from day.base import ROOT, Day, Result, UnavailableError, gb, result
from day.memory_use import against_plan, within_plan
from day.work import config, use_capture

PUBLISHED = 61.67  # % of the MRI questions, Qwen2-VL-2B without training (arXiv 2502.19634)
SHORT = [f"model.recipe.{key}" for key in ("max_completion_tokens=12", "group_size=4", "prompts_per_step=4")]
SMALL = 1_000_000  # entries of the weights that are compared: a copy of all would count in the peak
NEAR = 5.0  # points; the 95 % interval of 300 answers is 5.5 wide on each side


def zero_shot(day: Day) -> Result:
    """Accuracy of the untrained model on the paper's questions."""
    root = [f"data.root={day.data}"] if day.data else []
    try:
        instantiate(composed(root).data)
    except FileNotFoundError as error:
        raise UnavailableError(f"{error} (--data DIR gives data.root)") from None
    overrides = [*day.model[:2], *root, "controls=[image]", "audit=null", "logger=csv"]
    code, _ = run_py(day, "zero_shot", "+experiment=zero_shot", *overrides)
    folder = only_run(day, "zero_shot")
    metrics = json.loads((folder / "metrics.json").read_text())
    shares = {name: 100 * value["value"] for name, value in metrics["accuracy"].items()}
    mri = shares["mri"]
    return result(
        {
            "accuracy, %": {name: round(share, 2) for name, share in shares.items()},
            "published on MRI, %": PUBLISHED,
        },
        {
            "the run ends with code 0": code == 0,
            f"MRI within {NEAR} points of {PUBLISHED} %": abs(mri - PUBLISHED) <= NEAR,
        },
    )


def real_size(day: Day) -> Result:
    """``experiments/real_size/measure.py`` with an adapter."""
    out = day.scratch / "real_size.json"
    command = [sys.executable, ROOT / "experiments/real_size/measure.py", "--json", out]
    if day.rehearsal:
        command += ["--model", "tiny", "--cases"]
    else:
        command += ["--cases", "lora-grpo", "--checkpoint", day.checkpoint, "--scratch", day.scratch]
    ended = in_its_own_process(command)
    found = json.loads(out.read_text())
    figures = {"differences from transformers in fp32": found["parity"]}
    for name, case in found["cases"].items():
        numbers = {key: value for key, value in case.items() if not isinstance(value, dict | list)}
        figures[name] = numbers | {
            f"seconds of {key}": value for key, value in case.get("seconds", {}).items()
        }
    return result(figures, {"its own checks pass": ended.code == 0})


class Injected(Callback):
    """Makes one gradient of one step infinite; records losses, and whether that step changed small weights.

    Args:
        step: counted from 0.
    """

    def __init__(self, module: Any, step: int) -> None:
        self.losses: list[float] = []
        self.skipped: list[float] = []
        self.gaps: list[float] = []
        self.moved = math.nan  # largest change of a weight in that step
        apply_gradients = module.apply_gradients

        def apply_injected(*args: Any, **kwargs: Any) -> Any:
            if module.step != step:
                return apply_gradients(*args, **kwargs)
            parameters = [p for p in module.policy.trainable_parameters if p.numel() < SMALL]
            before = [p.detach().clone() for p in parameters]
            parameters[0].grad.view(-1)[0] = math.inf
            norm = apply_gradients(*args, **kwargs)
            changes = [(p.detach() - b).abs().max() for p, b in zip(parameters, before, strict=True)]
            self.moved = float(torch.stack(changes).max())
            return norm

        module.apply_gradients = apply_injected

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.losses.append(metrics["train/loss"])
        self.skipped.append(metrics.get("train/skipped_updates", 0.0))
        self.gaps.append(metrics["train/sampling_logp_difference_p99"])


def grpo_steps(day: Day) -> Result:
    """20 steps of ``+experiment=grpo_600`` on phantoms, one with an infinite gradient; then a checkpoint."""
    steps, at = day.pick(20, 4), day.pick(10, 2)
    cfg = config(
        day,
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=-1",
        "+trainer.limit_val_batches=0",
        f"data.train.n={day.pick(80, 32)}",
        f"workers={day.pick(6, 0)}",
        *day.pick([], SHORT),
    )
    module, data, trainer = built(cfg)
    use_capture(day, module)
    timer = StepTimer(module)
    seen = Injected(module, at)
    trainer.callbacks.append(seen)
    saved = day.scratch / "saved.ckpt"
    figures: dict[str, Any] = {}
    trainer.callbacks.append(SaveAtTheEnd(saved, figures, room=day.pick(40e9, 0)))
    trainer.fit(module, data)
    saved.unlink(missing_ok=True)
    medians = {f"{name}, s": sorted(times)[len(times) // 2] for name, times in timer.seconds.items()}
    shown = {"median seconds": medians, "largest p99 of sampler and trainer": max(seen.gaps)}
    bounds = {
        f"{steps} steps": module.step == steps,
        "all losses are finite": all(map(math.isfinite, seen.losses)),
        "the step with an infinite gradient changes no weight": seen.moved == 0,
        "and is counted as skipped": seen.skipped[-1] == 1,
        "sampler and trainer differ by at most 0.15 at the 99th percentile": max(seen.gaps) <= 0.15,
    }
    if not day.rehearsal:
        shown["peak by phase"] = against_plan(cfg, timer)
        bounds |= within_plan(shown["peak by phase"])
    return result(shown | figures, bounds)


class SaveAtTheEnd(Callback):
    """Saves a checkpoint after the last step, if there is room on the disk; records size and seconds."""

    def __init__(self, path: Path, figures: dict[str, Any], room: float) -> None:
        self.path, self.figures, self.room = path, figures, room

    def on_train_end(self, trainer, module) -> None:
        if (free := shutil.disk_usage(self.path.parent).free) < self.room:
            self.figures["checkpoint"] = f"not saved: {gb(free)} GB of free disk"
            return
        start = clock()
        trainer.save_checkpoint(self.path)
        self.figures["checkpoint, seconds to save"] = round(clock() - start, 1)
        self.figures["checkpoint GB"] = gb(self.path.stat().st_size)


def kill_and_resume(day: Day) -> Result:
    """Kill a run by SIGKILL after its first checkpoint; the same command resumes it."""
    steps = day.pick(12, 6)
    overrides = ["+experiment=grpo_600", *day.model, "data=phantom", "audit=null", "logger=csv"]
    overrides += ["data.train.n=48", "data.validation.n=4", "data.test.mri.n=4", "data.test.ct.n=1"]
    overrides += ["data.test.xray.n=1", "controls=[image]", f"peft={day.pick('lora', 'full')}"]
    overrides += [f"model.recipe.max_completion_tokens={day.pick(96, 12)}", f"workers={day.pick(4, 0)}"]
    overrides += [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.val_check_interval=1.0"]
    overrides += [f"callbacks.last.every={steps // 3}", "resume=auto"]
    overrides += [f"trainer.accelerator={day.pick('gpu', 'cpu')}"]
    killed, first = run_py(day, "kill", *overrides, until="checkpoints/last.ckpt")
    folder = only_run(day, "kill")
    size = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*.ckpt"))
    code, second = run_py(day, "kill", *overrides)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    logged = [int(float(row["step"])) for row in rows if row.get("train/loss")]
    return result(
        {
            "seconds until it was killed": first,
            "seconds of the resumed attempt": second,
            "steps in metrics.csv": len(logged),
            "checkpoints when it was killed, GB": gb(size),
        },
        {
            "the first attempt was killed": killed == -signal.SIGKILL,
            "the second ends with code 0": code == 0,
            f"each of {steps} steps is logged once": len(set(logged)) == len(logged) == steps,
            "metrics.json says so too": json.loads((folder / "metrics.json").read_text())["run"]["steps"]
            == steps,
        },
    )


def run_py(day: Day, name: str, *overrides: str, until: str | None = None) -> tuple[int, float]:
    """Run ``run.py`` in a folder of its own; kill it once its run folder has the file ``until``."""
    folder, start = day.scratch / name, time.monotonic()
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, ROOT / "run.py", *overrides], cwd=folder)
    while until and process.poll() is None:
        if any(folder.glob(f"outputs/runs/*/{until}")):
            process.kill()
        time.sleep(0.2)
    return process.wait(), round(time.monotonic() - start, 1)


def only_run(day: Day, name: str) -> Path:
    (folder,) = (day.scratch / name).glob("outputs/runs/*")
    return folder
