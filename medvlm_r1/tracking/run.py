"""What the loggers get at the start and at the end of a run; the first rank alone calls this."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from torch.utils.tensorboard.summary import hparams

from medvlm_r1.artifacts.record import commit, hardware, versions
from medvlm_r1.report.run_folder import flatten
from medvlm_r1.tracking.mlflow import MLflow
from medvlm_r1.tracking.wandb_run import reach, send_artifact

log = logging.getLogger("medvlm_r1")
FILES = ("report.html", "metrics.json", "predictions.jsonl")
_METRICS = ("validation/accuracy", "test/accuracy")  # columns of TensorBoard's table of runs
# Groups in that table: those that define the result.
_GROUPS = ("method", "data", "model", "peft", "optimizer", "prompt", "reward", "rollout", "seed", "run")
_USER = re.compile(r"(?<=://)[^/\s]+@")  # user and password in an address


def log_start(
    loggers: Sequence[Logger], config: dict[str, Any], audit: Mapping[str, Any], devices: int
) -> None:
    """Give every logger the resolved configuration and, under ``run``, the facts of this attempt.

    Args:
        config: the resolved configuration; user names and passwords in addresses are left out.
        audit: findings of the data audit; empty without one.
        devices: number of devices over all nodes.

    Raises:
        TrackingError: W&B has no API key.
    """
    facts = {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "devices": devices,
        "audit": audit.get("verdict"),
        "data_sha256": audit.get("data_sha256"),
    }
    params = _without_users({**config, "run": facts})
    for logger in loggers:
        if config["track"] and isinstance(logger, WandbLogger | MLflow):
            sent = f"{', '.join(config['track'])} with questions and answers"
            log.info(
                "%s gets %s; track=[] sends the configuration and metrics alone", type(logger).__name__, sent
            )
        if isinstance(logger, WandbLogger):
            reach(lambda logger=logger: logger.experiment)
        logger.log_hyperparams(params)
        if isinstance(logger, TensorBoardLogger):
            _log_to_tensorboard(logger, params)


def log_end(loggers: Sequence[Logger], folder: Path, track: Sequence[str]) -> None:
    """Log the test accuracies and, if ``track`` has ``files``, send :data:`FILES` of the run folder.

    ``metrics.csv`` gets neither: it has the metrics of training. A logger that fails gets a warning: the run
    is complete on disk.
    """
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    accuracies = {name: interval["value"] for name, interval in metrics["accuracy"].items()}
    values = {f"test/{name}/accuracy": value for name, value in accuracies.items()}
    values["test/accuracy"] = sum(accuracies.values()) / len(accuracies)
    files = [folder / name for name in FILES if (folder / name).exists() and "files" in track]
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue
        try:
            logger.log_metrics(values, step=metrics["run"]["steps"])
            if files and isinstance(logger, WandbLogger):
                send_artifact(logger.experiment, folder.name, "run", files)
            if isinstance(logger, MLflow):
                for path in files:
                    logger.experiment.log_artifact(logger.run_id, str(path))
            logger.finalize("success")
        except Exception as error:  # each service has errors of its own
            log.warning(
                "%s did not get the results (%s); they are in %s", type(logger).__name__, error, folder
            )


def _log_to_tensorboard(logger: TensorBoardLogger, params: dict[str, Any]) -> None:
    """Write the configuration as text, and as hyperparameters beside :data:`_METRICS`.

    Lightning's own ``log_hyperparams`` would add a point to the curve of each metric.
    """
    text = OmegaConf.to_yaml(OmegaConf.create(params))
    logger.experiment.add_text("configuration", f"```yaml\n{text}```")
    flat = flatten({group: params[group] for group in _GROUPS if group in params})
    flat = {key: value for key, value in flat.items() if not key.rpartition(".")[2].startswith("_")}
    plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat.items()}
    for summary in hparams(plain, dict.fromkeys(_METRICS, 0.0)):
        logger.experiment.file_writer.add_summary(summary)
    logger.experiment.flush()


def _without_users(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_users(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_users(item) for item in value]
    return _USER.sub("", value) if isinstance(value, str) else value
