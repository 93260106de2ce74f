"""Tables of training completions with pictures and rewards."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from medvlm_r1.data.sample import LETTERS
from medvlm_r1.runs.folder import image_path
from medvlm_r1.tracking.mlflow import MLflow


def send_completions(
    loggers: Sequence[Logger], step: int, rows: Sequence[Mapping[str, Any]], images: Path | None
) -> None:
    """Send completions of one step as a table, and the pictures of their questions.

    Args:
        rows: lines of ``rollouts/step-N.jsonl``.
        images: folder of the run's images; ``None`` sends no pictures.
    """
    ids = list(dict.fromkeys(row["sample_id"] for row in rows))
    paths = {name: image_path(images, name) for name in ids} if images else {}
    paths = {name: path for name, path in paths.items() if path.exists()}
    columns, cells = table_of(rows)
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue
        if isinstance(logger, WandbLogger):
            import wandb

            table = wandb.Table(columns=columns, data=cells)
            if paths:  # one per row: W&B stores equal files once
                shown = [paths.get(row["sample_id"]) for row in rows]
                table.add_column("picture", [path and wandb.Image(str(path)) for path in shown])
            logger.experiment.log({"completions": table, "trainer/global_step": step})
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("completions", as_markdown(columns, cells), step)
            for number, path in enumerate(paths.values()):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                logger.experiment.add_image(f"questions/{number}", pixels, step, dataformats="HWC")
        if isinstance(logger, MLflow):
            text = as_markdown(columns, cells)
            logger.experiment.log_text(logger.run_id, text, f"completions/step-{step}.md")
            for path in paths.values():
                logger.experiment.log_artifact(logger.run_id, str(path), "images")


def table_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Column names and cells: question, gold answer, completion, each reward term, total, advantage."""
    terms = list(rows[0]["rewards"]) if rows else []
    columns = ["question", "gold", "completion", "right", *terms, "total", "advantage"]
    cells = []
    for row in rows:
        options = " ".join(f"{a}) {o}" for a, o in zip(LETTERS, row["options"], strict=False))
        question = " ".join(filter(None, (row["question"], options)))
        scores = [*row["rewards"].values(), row["total"], row["advantage"]]
        cells.append([question, row["gold"], row["text"], row["right"], *scores])
    return columns, cells


def as_markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; line breaks of a cell become spaces."""
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    # entities, since TensorBoard prints a backslash before < and >
    special = r"[&<>|`*_\[\]\\]"
    return re.sub(special, lambda sign: f"&#{ord(sign[0])};", " ".join(str(value).split()))
