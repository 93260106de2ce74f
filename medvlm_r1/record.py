"""What a finished run leaves: weights, predictions, metrics and clock."""

import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medvlm_r1.evaluate.predictions import summarise, write_predictions
from medvlm_r1.module import VLMModule

PACKAGES = ("torch", "transformers", "lightning", "peft", "hydra-core", "datasets")


class Clock:
    """Wall-clock seconds of the phases of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def write_record(
    folder: Path, config: dict[str, Any], module: VLMModule, validation: dict[str, float], clock: Clock
) -> None:
    """Write ``predictions.jsonl``, ``metrics.json``, ``timing.json`` and ``model/``.

    Rows that a source left out are listed in ``skipped.txt``. Clock, memory and hardware go to
    ``timing.json`` alone, so that the rest is the same for the same seed.
    """
    write_predictions(folder / "predictions.jsonl", module.predictions)
    method = config["method"]["_target_"].rsplit(".", 1)[-1].lower() if module.trains else "zero_shot"
    questions = module.trainer.datamodule.questions
    run = {
        "name": folder.name,
        "experiment": config["experiment"],
        "method": method,
        "seed": config["seed"],
        "model": model_name(config["model"]),
        "prompt": config["prompt"]["name"],
        "data": list(questions.test),
        "trained_on": sorted({sample.modality for sample in questions.train}),
        "training_questions": len(questions.train) if module.trains else 0,
        "steps": module.step,
        # an endpoint does not tell
        "parameters": sum(p.numel() for p in module.policy.parameters()) or None,
        "parameters_trained": sum(p.numel() for p in module.policy.trained) if module.trains else 0,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": commit(),
        "select": config["select"],
    }
    metrics = {
        "run": run,
        **summarise(module.predictions),
        "validation": {name.removeprefix("validation/"): value for name, value in validation.items()},
        "controls": {},
        "audit": {},
        "counters": {"skipped_rows": len(questions.skipped)},
    }
    write_json(folder / "metrics.json", metrics)
    if questions.skipped:
        (folder / "skipped.txt").write_text("\n".join(questions.skipped) + "\n", encoding="utf-8")
    write_json(folder / "timing.json", {"hardware": hardware(), "seconds": clock.seconds})
    if module.trains:
        save_model(folder / "model", config, module)


def save_model(folder: Path, config: dict[str, Any], module: VLMModule) -> None:
    """The weights as a Hugging Face directory, with the way in which they were asked beside them."""
    module.policy.save(folder)
    recipe = config["model"]["recipe"]
    asked = {
        "run": Path(module.trainer.default_root_dir).name,
        "base": config["model"]["path"],
        "prompt": {key: value for key, value in config["prompt"].items() if key != "_target_"},
        "min_pixels": recipe["min_pixels"],
        "max_pixels": recipe["max_pixels"],
        "max_completion_tokens": recipe["max_completion_tokens"],
    }
    write_json(folder / "medvlm_r1.json", asked)


def model_name(model: Mapping[str, Any]) -> str:
    """What a model option calls its model: where the weights are, or the name it is served under."""
    return model["path"] if "path" in model else model["name"]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hardware() -> str:
    """What the run computed on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def commit() -> str | None:
    """The commit that the code stands at, with ``-dirty`` where it was changed since."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
