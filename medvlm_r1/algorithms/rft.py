"""Rejection sampling fine-tuning: SFT on the starting weights' own right completions.

RFT (Yuan et al. 2023, arXiv 2308.01825, section 3.3), which is also one iteration of STaR (Zelikman et al.
2022, arXiv 2203.14465) without its rationalisation. Before the first step the starting weights complete every
training question with GRPO's engine, sampling settings, prompts and rewards; completions with full rewards
are the targets. Nothing is sampled after that: GRPO differs from it by sampling from the policy as it learns,
and by learning from wrong completions too.

Departures:

1. RFT samples from a model after SFT: give that as ``model.path``. Here the base itself is sampled.
2. Completions of a question are distinct if their texts are; RFT compares the equations in them.
3. The gold answers are no further targets, and a question without a right completion has no loss.
4. A step holds all kept completions of its questions, which are GRPO's in GRPO's order; RFT shuffles the
   completions. The loss is the mean over the step's tokens.
"""

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from medvlm_r1.algorithms.sampling import sample_trajectory
from medvlm_r1.algorithms.sft import SFT, Target
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.data.sample import VQASample
from medvlm_r1.rollout.engine import Sampling, release_memory, sync_weights
from medvlm_r1.runs.durable import LineLog
from medvlm_r1.runs.progress import track

log = logging.getLogger("medvlm_r1")


class NoRightCompletionError(RuntimeError):
    """No sampled completion earned the rewards, so there is nothing to train on."""


class RFT(SFT):
    """Rejection sampling fine-tuning.

    ``sampled-RANK.jsonl`` in the run folder has a line per question: how many tokens and completions were
    sampled, and those that are kept. A run that is stopped while it samples goes on with the next questions.

    Args:
        sampling: group size, temperature, truncation and completion limit of the samples.
        threshold: a completion is kept if every reward term is at least this.
        max_kept: distinct completions of a question that are kept, the first ones.
        name, shared: the arguments of :class:`~medvlm_r1.algorithms.sft.SFT`.
    """

    def __init__(
        self,
        *,
        sampling: Sampling,
        threshold: float = 1.0,
        max_kept: int = 4,
        name: str = "rft",
        **shared: Any,
    ) -> None:
        super().__init__(name=name, **shared)
        if max_kept < 1:
            raise ValueError(f"method.max_kept is {max_kept}: it must be at least 1")
        if sampling.temperature == 0:
            raise ValueError(
                "method.sampling.temperature is 0, so all completions of a question would be equal: raise it"
            )
        self.sampling, self.threshold, self.max_kept = sampling, threshold, max_kept
        self.kept: dict[str, list[list[int]]] = {}  # sample id -> token ids of each kept completion

    def targets(self, sample: VQASample) -> list[Target]:
        return [torch.tensor(ids) for ids in self.kept.get(sample.id, ())]

    def on_fit_start(self) -> None:
        """Sample the questions of the run, unless a checkpoint holds the kept completions."""
        if self.kept:
            return
        own = LineLog(Path(self.trainer.default_root_dir) / f"sampled-{self.global_rank}.jsonl")
        rows = {row["sample_id"]: row for _, line in own.read() for row in [json.loads(line)]}
        sync_weights(self.engine, self.policy)
        # A run that ends within the first epoch needs no others. Questions that do not fill that epoch's last
        # step are not sampled, and have no target in a later one.
        batches = islice(self.trainer.datamodule.train_dataloader(), self.total_steps)
        steps = min(self.total_steps, int(self.trainer.num_training_batches))
        for prompts in track(batches, "Sampling the starting weights", steps):
            if not rows.keys() >= {prompt.sample.id for prompt in prompts}:
                trajectory = sample_trajectory(self, prompts, self.sampling)
                new = sampled_rows(trajectory, self.threshold, self.max_kept)
                own.append(*new)
                rows |= {row["sample_id"]: row for row in new}
        release_memory(self.engine)
        for share in self.gather_objects(rows):
            rows |= share
        self.kept = {name: [c["ids"] for c in row["kept"]] for name, row in rows.items()}
        self.take_counters()  # into the totals, not into the first step
        if self.trainer.is_global_zero:
            self._count(list(rows.values()))
        if not any(self.kept.values()):
            raise NoRightCompletionError(
                f"none of {len(rows) * self.sampling.group_size:,} completions of {len(rows):,} questions "
                f"has a reward of {self.threshold:g} in every term, so there is nothing to train on: read "
                f"{own.path}, raise method.sampling.group_size, lower method.threshold, or take weights that "
                "answer better (model.path)"
            )

    def _count(self, rows: list[dict[str, Any]]) -> None:
        counts = {name: sum(row[name] for row in rows) for name in ("sampled", "right")}
        counts["kept"] = sum(len(row["kept"]) for row in rows)
        self.totals.update({f"completions_{name}": count for name, count in counts.items()})
        tokens = sum(row["tokens"] for row in rows)
        self._seen_in_step.update(
            questions=len(rows),
            tokens=tokens + sum(row["prompt_tokens"] for row in rows),
            completion_tokens=tokens,
        )
        log.info(
            "rejection sampling: %s of %s completions are right, %s different ones are kept, of %s of %s "
            "questions; %s tokens sampled",
            *(f"{counts[name]:,}" for name in ("right", "sampled", "kept")),
            *(f"{sum(map(bool, self.kept.values())):,}", f"{len(rows):,}", f"{tokens:,}"),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["medvlm_r1_kept"] = self.kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.kept = checkpoint["medvlm_r1_kept"]
        self._seen_in_step.clear()  # the sampling's, which the checkpoint has


def sampled_rows(trajectory: Trajectory, threshold: float, max_kept: int) -> list[dict[str, Any]]:
    """One JSON object per question, with the completions that are kept.

    Right are the completions of which every reward term is at least ``threshold``, and that ended before the
    limit. Kept is the first of each text, ``max_kept`` of a question at most.
    """
    rollout, size = trajectory.rollout, trajectory.group_size
    passed = torch.stack([values >= threshold for values in trajectory.rewards.terms.values()]).all(0)
    right = (passed & ~rollout.truncated.cpu()).tolist()
    ids, lengths = rollout.tokens.tolist(), rollout.lengths.tolist()
    rows = []
    for number, prompt in enumerate(trajectory.prompts):
        group = range(number * size, (number + 1) * size)
        first = {rollout.texts[i]: i for i in reversed(group) if right[i]}
        kept = sorted(first.values())[:max_kept]
        sample = prompt.sample
        rows.append(
            {
                "sample_id": sample.id,
                "question": sample.question,
                "options": list(sample.options),
                "gold": sample.answer,
                "prompt_tokens": len(prompt.ids),
                "tokens": sum(lengths[i] for i in group),
                "sampled": size,
                "right": sum(right[i] for i in group),
                "kept": [{"text": rollout.texts[i], "ids": ids[i][: lengths[i]]} for i in kept],
            }
        )
    return rows
