"""Rows of completions and small images of questions, on disk for the report."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.data.sample import VQASample
from medvlm_r1.prompts import is_correct
from medvlm_r1.runs.durable import replace_file, write_whole
from medvlm_r1.runs.folder import image_path

MAX_SIDE = 448  # pixels; a scan is legible, and hundreds of images stay small


def rollout_rows(step: int, trajectory: Trajectory) -> list[dict[str, Any]]:
    """One JSON object per completion, for ``rollouts/step-N.jsonl``."""
    rollout, rewards = trajectory.rollout, trajectory.rewards
    columns = (rollout.lengths, rollout.truncated, rewards.total, trajectory.row_advantages)
    # once a column: a read of a tensor may wait for the device
    lengths, truncated, total, advantages = (column.tolist() for column in columns)
    terms = {name: values.tolist() for name, values in rewards.terms.items()}
    return [
        {
            "step": step,
            "sample_id": sample.id,
            "image": [image.name for image in sample.images],
            "modality": sample.modality,
            "question_type": sample.question_type,
            "question": sample.question,
            "options": list(sample.options),
            "gold": sample.answer,
            "completion": row % trajectory.group_size,
            "text": answer.text,
            "answer": answer.content if sample.is_open else answer.letter,
            "right": is_correct(answer, sample),
            "rewards": {name: round(values[row], 6) for name, values in terms.items()},
            "total": round(total[row], 6),
            "advantage": round(advantages[row], 6),
            "tokens": lengths[row],
            "truncated": truncated[row],
        }
        for row, (sample, answer) in enumerate(zip(trajectory.samples, trajectory.answers, strict=True))
    ]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def save_image(sample: VQASample, folder: Path) -> None:
    """Save a small copy of the question's first image in ``folder``, unless there is one."""
    target = image_path(folder, sample.id)
    if sample.images and not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        image = sample.images[0].load()
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        with replace_file(target) as partial:
            image.save(partial, "PNG")
