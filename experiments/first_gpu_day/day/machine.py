"""The machine and the weights."""

import importlib.util
import os
import platform
import resource
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from day.base import Day, Result, gb, result

PACKAGES = ("torch", "triton", "transformers", "lightning", "peft", "bitsandbytes", "flash-attn")


def environment(day: Day) -> Result:
    """Card, driver, packages, memory, limits of the system."""
    import torch

    cards = [card_facts(index) for index in range(torch.cuda.device_count())]
    shm = shutil.disk_usage("/dev/shm").total
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    figures = {
        "cards": cards,
        "driver": driver(),
        "CUDA of torch": torch.version.cuda or "none",
        "cuDNN": torch.backends.cudnn.version() or "none",
        "python": platform.python_version(),
        "packages": [f"{name} {installed(name)}" for name in PACKAGES],
        "host memory GB": gb(host_memory("MemTotal")),
        "host memory free GB": gb(host_memory("MemAvailable")),
        "CPU cores": len(os.sched_getaffinity(0)),
        "open files (ulimit -n)": files,
        "/dev/shm GB": gb(shm),
        "free disk for weights and checkpoints GB": gb(shutil.disk_usage(day.scratch).free),
    }
    bounds = {
        "at least 256 open files": files >= 256,
        "/dev/shm holds 64 MB (Docker's default)": shm >= 64e6,
    }
    if not day.rehearsal:
        bounds |= {
            "a CUDA card of compute capability 8.0 or above": any(
                float(card["capability"]) >= 8 for card in cards
            ),
            "bf16 products": bool(cards) and torch.cuda.is_bf16_supported(),
            "triton is installed": importlib.util.find_spec("triton") is not None,
            "40 GB of free disk": shutil.disk_usage(day.scratch).free >= 40e9,
        }
    return result(figures, bounds)


def card_facts(index: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = f"{facts.major}.{facts.minor}"
    memory = {"memory GB": gb(total), "free GB": gb(free)}
    return {"card": facts.name, "capability": capability, **memory, "SMs": facts.multi_processor_count}


def driver() -> str:
    """Version of NVIDIA's kernel module."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("  ")[1].strip()
    except (OSError, IndexError):
        return "none"


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def host_memory(key: str) -> float:
    """Bytes of a line of ``/proc/meminfo``."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next(float(size) * 1024 for name, size, *_ in lines if name == f"{key}:")


def weights(day: Day) -> Result:
    """Write a checkpoint with random weights where there is none, and load it."""
    from build_run import built, device, random_checkpoint

    from day.work import config

    figures: dict[str, Any] = {
        "weights": str(day.pick(day.weights or "random, of the genuine size", "embedded"))
    }
    if not (day.rehearsal or day.weights):
        start = time.monotonic()
        figures["parameters written"] = random_checkpoint(day.checkpoint)
        figures["seconds to write"] = round(time.monotonic() - start, 1)
    start = time.monotonic()
    module, *_ = built(config(day))
    module.to(device())
    figures["seconds to load"] = round(time.monotonic() - start, 1)
    figures["parameters"] = sum(p.numel() for p in module.policy.parameters())
    least, most = day.pick((2.0e9, 2.4e9), (1e6, 2e6))
    inside = least < figures["parameters"] < most
    return result(figures, {f"between {least:,.0f} and {most:,.0f} parameters": inside})
