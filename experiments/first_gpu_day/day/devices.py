"""Several devices: DDP against one, steps recorded beside NCCL, FSDP, adapters, weights in 4 bits."""

import gc
import math
import os
import threading
import time
from typing import Any

import torch
import torch.distributed
from build_run import built
from lightning import Callback

from day.base import Day, Result, gb, result
from day.machine import host_memory, installed
from day.work import config, encoded, use_capture
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

MICRO = ("+trainer.limit_val_batches=0", "trainer.max_epochs=-1")


class HostMemory:
    """Watches the host's memory; ``used`` is the most that was taken since the start, in bytes."""

    def __init__(self) -> None:
        self.used, self._first = 0.0, host_memory("MemAvailable")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.used = max(self.used, self._first - host_memory("MemAvailable"))
            time.sleep(0.5)


class Losses(Callback):
    """Loss, norm of the gradient and entropy of each step."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        metrics = trainer.callback_metrics
        names = ("train/loss", "train/grad_norm", "train/entropy")
        self.rows.append(tuple(float(metrics[name]) for name in names))


def all_devices(day: Day) -> int:
    return day.pick(torch.cuda.device_count(), 2)


def train(day: Day, strategy: str, *overrides: str, steps: int = 2) -> tuple[dict[str, Any], list]:
    """Take a few steps; returns figures, and the rows of :class:`Losses`."""
    devices, prompts = 1 if strategy == "single" else all_devices(day), 2 * all_devices(day)
    tokens, seen, host = day.pick(64, 8), Losses(), HostMemory()
    sizes = [f"data.train.n={prompts * steps}", f"trainer.max_steps={steps}", f"trainer={strategy}"]
    sizes += [f"trainer.devices={devices}", f"model.recipe.max_completion_tokens={tokens}"]
    sizes += [f"model.recipe.prompts_per_step={prompts}", "model.recipe.micro_batch=1"]
    start = time.monotonic()
    module, data, trainer = built(config(day, *sizes, *MICRO, *overrides), seen)
    use_capture(day, module)
    trainer.fit(module, data)
    figures = {
        "strategy": strategy,
        "devices": devices,
        "loss": [round(loss, 6) for loss, *_ in seen.rows],
        "gradient norm": [round(norm, 6) for _, norm, _ in seen.rows],
        "seconds": round(time.monotonic() - start, 1),
        "host memory taken GB": gb(host.used),
        "GPU memory, peak GB": gb(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else "none",
        "recorder": module.engine.recorder.failure or f"{module.engine.recorder.count} recordings",
    }
    del module, data, trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return figures, seen.rows


def ddp_against_one(day: Day) -> Result:
    """Samples and gradient of the first steps in fp32, on all devices and on one."""
    exact = ("model.recipe.dtype=float32", "optimizer=sgd", "method.beta=0")
    together, ours = train(day, "ddp", *exact)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return result({}, {})
    torch.distributed.destroy_process_group()
    for name in ("WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "MASTER_PORT"):
        os.environ.pop(name, None)
    alone, theirs = train(day, "single", *exact)
    pairs = list(zip(ours, theirs, strict=True))
    norm, entropy = (max(abs(one[i] / other[i] - 1) for one, other in pairs) for i in (1, 2))
    return result(
        {"runs": [together, alone], "norm differs by": norm, "entropy differs by": entropy},
        {
            "the gradient's norm agrees to 1e-3 of it": norm <= 1e-3,
            "the sampler's entropy to 1e-4 of it": entropy <= 1e-4,
        },
    )


def finite(day: Day, strategy: str, *overrides: str) -> Result:
    """Train a few steps, and look only at losses, memory and the recorder."""
    figures, rows = train(day, strategy, *overrides, steps=3)
    return result(
        figures,
        {
            "three finite losses": len(rows) == 3 and all(math.isfinite(loss) for loss, *_ in rows),
            "finite gradients": all(math.isfinite(norm) for _, norm, _ in rows),
            "half of the host's memory is never taken": figures["host memory taken GB"]
            <= gb(host_memory("MemTotal")) / 2,
            "the recorder finds no difference": figures["recorder"].endswith("recordings"),
        },
    )


def fsdp(day: Day) -> Result:
    """All weights, split over the devices."""
    return finite(day, "fsdp")


def ddp_lora(day: Day) -> Result:
    """An adapter on each device."""
    return finite(day, "ddp", "peft=lora")


def ddp_qlora(day: Day) -> Result:
    """An adapter on weights in 4 bits."""
    if installed("bitsandbytes") == "missing":
        return Result("skipped", reason="bitsandbytes is missing: pip install -e '.[quantized]'")
    return finite(day, "ddp", "peft=qlora")


class CaptureBesideNCCL(Callback):
    """Records the steps of short rollouts again and again, with a reduction of all ranks between them."""

    def __init__(self, times: int) -> None:
        self.times, self.done = times, 0

    def on_train_start(self, trainer, module) -> None:
        prompts = encoded(module.policy, 1)
        for attempt in range(self.times):
            value = torch.ones(1_000_000, device=module.device)
            reduction = torch.distributed.all_reduce(value, async_op=True)
            module.engine.recorder.forget()
            module.engine(module.policy, prompts, Sampling(4, 4), NoiseKey(0, attempt))
            reduction.wait()
            assert float(value[0]) == trainer.world_size
            self.done += 1


def capture_under_nccl(day: Day) -> Result:
    """Record 100 times while NCCL's watchdog runs."""
    seen = CaptureBesideNCCL(day.pick(100, 2))
    devices = all_devices(day)
    sizes = [f"trainer.devices={devices}", "trainer.max_steps=1", f"data.train.n={2 * devices}"]
    sizes += [f"model.recipe.prompts_per_step={2 * devices}"]
    cfg = config(day, "trainer=ddp", "peft=lora", *sizes, *MICRO)
    module, data, trainer = built(cfg, seen)
    use_capture(day, module)
    trainer.fit(module, data)
    failure = module.engine.recorder.failure
    return result(
        {"recorded": seen.done, "self-check": failure or "no difference"},
        {"all attempts end": seen.done == seen.times, "the recorder finds no difference": failure is None},
    )
