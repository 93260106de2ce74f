"""Write the files of a finished run: weights, predictions, metrics and timing."""

import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from pydoc import locate
from typing import Any

import torch

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.steps import run_length
from medvlm_r1.artifacts.model_card import model_card
from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.data.sources.huatuo_bundle import HUB_ID
from medvlm_r1.data.sources.medvlm_r1 import medvlm_r1 as published_data
from medvlm_r1.data.splits import Questions
from medvlm_r1.evaluate.control_metrics import summarise_controls
from medvlm_r1.evaluate.controls import PRIOR, controls_of
from medvlm_r1.evaluate.predictions import (
    Prediction,
    add_released,
    prior_predictions,
    sort_predictions,
    summarise,
    write_predictions,
)
from medvlm_r1.policy.loading.resolve import base_of, loaded_commit
from medvlm_r1.policy.loading.validate import RECORD, read_json
from medvlm_r1.policy.prompt_record import LIMITS
from medvlm_r1.report.methods import method_title
from medvlm_r1.runs.durable import replace_folder, write_whole

PACKAGES = ("medvlm_r1", "torch", "transformers", "lightning", "peft", "hydra-core", "datasets")


class Clock:
    """Measures wall-clock seconds per phase of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def describe(config: Mapping[str, Any], module: VLMModule, questions: Questions) -> str:
    """Describe a run in one line, for the log: method, model, data sizes and trained parameters."""
    counts = ", ".join(f"{len(source)} {name}" for name, source in questions.test.items())
    training = ""
    if module.trains:
        trained = sum(p.numel() for p in module.policy.trainable_parameters)
        length = run_length(config, len(questions.train), config["model"]["recipe"]["prompts_per_step"])
        updates = f" of {length.updates_per_step} updates" if length.updates_per_step > 1 else ""
        steps = f"{len(questions.train)} training questions in {length.total} steps{updates}"
        training = f"{steps}, {trained:,} parameters trained; "
    return f"{method_title(module.method)} of {model_name(config['model'])}; {training}tests: {counts}"


def write_artifacts(
    folder: Path,
    config: dict[str, Any],
    module: VLMModule,
    validation: dict[str, float],
    clock: Clock,
    audit: dict[str, Any],
) -> None:
    """Write ``predictions.jsonl``, ``skipped.txt``, ``timing.json``, ``model/``, and last ``metrics.json``.

    Only ``timing.json`` depends on the clock: on one CPU, the other files are the same for the same seed.
    ``validation`` has the last validation's metrics, ``audit`` the findings of the data audit, if any.
    """
    controls, not_run = controls_of(config["controls"], module.prompt, served="url" in config["model"])
    questions = module.trainer.datamodule.questions
    predictions = module.predictions
    if PRIOR in controls:
        prior = prior_predictions(questions.train, questions.test, folder.name, module.step)
        answered = {(row.test_set, row.sample_id) for row in predictions}  # fewer with limit_test_batches
        prior = [row for row in prior if (row.test_set, row.sample_id) in answered]
        predictions = sort_predictions([*predictions, *prior])
    predictions = add_released(predictions, config["evaluation"]["reading"], config["prompt"]["name"])
    write_predictions(folder / "predictions.jsonl", predictions)
    trained = module.policy.trainable_parameters if module.trains else []
    run = {
        "name": folder.name,
        "experiment": config["experiment"],
        "method": module.method,
        "seed": config["seed"],
        "model": model_name(config["model"]),
        "prompt": config["prompt"]["name"],
        "data": list(questions.test),
        "trained_on": sorted({sample.modality for sample in questions.train}),
        "training_questions": len(questions.train) if module.trains else 0,
        "steps": module.step,
        "updates": module.trainer.global_step,
        **{f"{name}_seen": module.seen[name] for name in ("questions", "tokens", "completion_tokens")},
        "completion_tokens_tested": sum(p.completion_tokens for p in predictions if p.control == PLAIN),
        "earlier": earlier_phases(config["model"].get("path")) if module.trains else [],
        # unknown for an endpoint
        "parameters": sum(p.numel() for p in module.policy.parameters()) or None,
        "parameters_trained": sum(p.numel() for p in trained),
        "versions": versions(),
        "commit": commit(),
        "select": config["select"],
    }
    metrics = {
        "run": run,
        **summarise(predictions),
        "validation": {name.removeprefix("validation/"): value for name, value in validation.items()},
        "controls": summarise_controls(predictions, controls, not_run, audit, module.trains),
        "audit": audit,
        "counters": {
            "skipped_rows": len(questions.skipped),
            **{name: number for name, number in module.computed.items() if not name.startswith("seconds_")},
        },
    }
    if questions.skipped:
        write_whole(folder / "skipped.txt", "\n".join(questions.skipped) + "\n")
    phases = {name: round(value, 3) for name, value in module.computed.items() if name.startswith("seconds_")}
    write_json(folder / "timing.json", {"hardware": hardware(), "seconds": clock.seconds, "phases": phases})
    if module.trains:
        save_model(folder / "model", config, module, metrics)
    write_json(folder / "metrics.json", metrics)


def save_model(folder: Path, config: dict[str, Any], module: VLMModule, metrics: dict[str, Any]) -> None:
    """Save a Hugging Face directory with the model card and ``medvlm_r1.json``: training, prompt and results.

    No file names a directory of this machine.
    """
    recipe, run, parser = config["model"]["recipe"], metrics["run"], config["prompt"]["_target_"]
    base, revision, on_hub = public_base(config["model"]["path"], config["model"]["revision"])
    record = {
        "run": run["name"],
        "base": base,
        "base_on_hub": on_hub,
        "revision": revision,
        "prompt": {key: value for key, value in config["prompt"].items() if key != "_target_"}
        | {"layout": module.prompt.layout, "tags": module.prompt.tags}
        | ({} if parser.startswith("medvlm_r1.") else {"class": parser}),
        **{key: recipe[key] for key in LIMITS},
        "training": {
            "method": run["method"],
            "datasets": [HUB_ID] if locate(config["data"]["_target_"]) is published_data else [],
            "questions": run["training_questions"],
            "modalities": run["trained_on"],
            "steps": run["steps"],
            "questions_seen": run["questions_seen"],
            "tokens_seen": run["tokens_seen"],
            "completion_tokens_seen": run["completion_tokens_seen"],
            "earlier": run["earlier"],
            "seed": run["seed"],
            "select": run["select"],
            "learning_rate": module.optim.lr * module.optim.lr_scale,
            "tuned": describe_tuning(config["model"]["tuning"]),
            "adapter": module.policy.has_adapter,
            "quantize": config["model"]["tuning"]["quantize"],
            "parameters": run["parameters_trained"],
        },
        "results": {
            name: {
                "strict": metrics["accuracy"][name],
                "lenient": metrics["accuracy_lenient"][name],
                "well_formed": metrics["format"][name]["well_formed"],
                "labels": metrics["controls"].get(name, {}).get("labels", []),
                "chance": chance_accuracy(module.predictions, name),
            }
            for name in metrics["accuracy"]
        },
        "versions": run["versions"],
        "commit": run["commit"],
    }
    with replace_folder(folder) as partial:
        module.policy.save(partial, max_new_tokens=recipe["max_completion_tokens"])
        write_json(partial / RECORD, record)
        card = model_card(record, adapter=module.policy.has_adapter)
        (partial / "README.md").write_text(card, encoding="utf-8")


def earlier_phases(path: str | None) -> list[dict[str, Any]]:
    """Training that the starting weights record, the first phase first; none of a base."""
    if path is None or not (Path(path) / RECORD).is_file():
        return []
    record = read_json(Path(path) / RECORD)
    training = record.get("training") or {}
    names = ("method", "steps", "questions_seen", "tokens_seen", "completion_tokens_seen", "learning_rate")
    phase = {"base": record.get("base"), **{name: training.get(name) for name in names}}
    return [*training.get("earlier", []), phase]


def public_base(path: str, revision: str | None) -> tuple[str, str | None, bool]:
    """Return name and commit of the starting weights, and whether the name is a hub id.

    The name of local weights is their last directory, or the run folder.
    """
    base, commit = base_of(path)
    if commit is None and Path(base).is_dir():
        folder = Path(base).resolve()
        return (folder.parent.name if folder.name == "model" else folder.name), None, False
    return base, commit or loaded_commit(path, revision) or revision, base != "embedded"


def describe_tuning(tuning: dict[str, Any]) -> str:
    """Describe the trained parameters in words."""
    if tuning["train"] != "adapter":
        return {"all": "all weights", "language_model": "the language model"}[tuning["train"]]
    adapter = tuning["adapter"]
    names = {"r": "rank", "lora_alpha": "alpha"}
    settings = [f"{name} {adapter[key]}" for key, name in names.items() if key in adapter]
    over = " over a language model in 4 bits (NF4)" if tuning["quantize"] else ""
    return f"an adapter ({', '.join(settings)}){over}"


def chance_accuracy(predictions: list[Prediction], test_set: str) -> float:
    """Expected accuracy of uniform guesses on a test set; an open question counts as 0."""
    rows = [p for p in predictions if (p.test_set, p.control) == (test_set, PLAIN)]
    return sum(1 / len(p.options) if p.options else 0.0 for p in rows) / len(rows)


def model_name(model: Mapping[str, Any]) -> str:
    """Return the path of the weights, or the name of a served model."""
    return model["path"] if "path" in model else model["name"]


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def hardware() -> str:
    """Describe the hardware of this process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def commit() -> str | None:
    """Return the commit of the code, with ``-dirty`` after uncommitted changes; ``None`` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    run = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    try:
        return subprocess.run(command, **run).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
