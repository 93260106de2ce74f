"""Callbacks that watch a run: progress, alarms, completions on the console, traces on disk."""

import json
import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from medvlm_r1.data.sample import LETTERS
from medvlm_r1.trace import save_picture, write_rows


class Progress(RichProgressBar):
    """Lightning's bar, with short names: reward, KL and accuracy fit beside it."""

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return {name.replace("train/", "").replace("validation/", "val "): v for name, v in metrics.items()}


class Alarms(Callback):
    """Say clearly when training goes nowhere; each alarm speaks once until its cause has passed.

    Lines go to the console and to ``alarms.jsonl`` in the run folder.

    Args:
        flat_steps: steps in a row without any group whose rewards differ.
        truncated_share: share of completions cut at the limit.
        sampler_gap: between sampler and trainer, in nats: how far the log-probabilities of one token in a
            hundred may lie apart. Seen are 1e-5 in fp32; on random weights in bf16, a few hundredths.
    """

    def __init__(self, flat_steps: int = 10, truncated_share: float = 0.5, sampler_gap: float = 0.5) -> None:
        self.flat_steps, self.truncated_share, self.sampler_gap = flat_steps, truncated_share, sampler_gap
        self._flat = 0
        self._standing: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        spread = metrics.get("train/groups_with_spread", 1.0)
        self._flat = 0 if spread > 0 else self._flat + 1
        truncated = metrics.get("train/truncated", 0.0)
        kl, loss = metrics.get("train/kl", 0.0), metrics.get("train/loss", 0.0)
        gap = metrics.get("train/gap_p99", 0.0)
        causes = {
            "no_spread": (
                self._flat >= self.flat_steps,
                f"no group had any reward spread for {self._flat} steps, so there is nothing to learn "
                "from: look at rollouts/, raise method.sampling.temperature or method.sampling.group_size",
            ),
            "truncated": (
                truncated > self.truncated_share,
                f"{truncated:.0%} of the completions were cut at the limit and cannot answer: raise "
                "model.recipe.max_completion_tokens",
            ),
            "not_finite": (
                not (math.isfinite(kl) and math.isfinite(loss)),
                f"KL is {kl} and loss is {loss}: lower the learning rate, or look for a token that the "
                "reference makes impossible",
            ),
            "sampler_gap": (
                gap > self.sampler_gap,
                f"sampler and trainer differ by {gap:.2g} nats or more at one token in a hundred: set "
                "method.importance_cap=2, or look with rollout=reference whether the engine errs",
            ),
            "no_loss_tokens": (
                metrics.get("train/loss_tokens", 1.0) == 0 or metrics.get("train/tokens", 2.0) <= 1,
                "no token worth learning carried loss in this step: every completion ended at once",
            ),
        }
        for name, (stands, message) in causes.items():
            if stands and name not in self._standing and trainer.is_global_zero:
                self._raise(trainer, module.step - 1, name, message)
            (self._standing.add if stands else self._standing.discard)(name)

    def state_dict(self) -> dict[str, Any]:
        return {"flat": self._flat, "standing": sorted(self._standing)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._flat, self._standing = state_dict["flat"], set(state_dict["standing"])

    def _raise(self, trainer: Trainer, step: int, name: str, message: str) -> None:
        Console().print(f"[bold red]ALARM[/] step {step}: {escape(message)}")
        with (Path(trainer.default_root_dir) / "alarms.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "alarm": name, "message": message}) + "\n")


class RolloutTrace(Callback):
    """Write every rollout to ``rollouts/step-N.jsonl`` and now and then show a completion.

    Args:
        keep: newest steps whose rollouts stay on disk, so that a long run does not fill it.
        show_every: steps between two completions on the console; 0 shows none.
        pictures_every: steps between two steps whose pictures are kept for the report.
        pictures: questions whose pictures are kept in such a step.
    """

    def __init__(
        self, keep: int = 1000, show_every: int = 25, pictures_every: int = 25, pictures: int = 4
    ) -> None:
        if keep < 1:
            raise ValueError(f"watch.rollouts.keep is {keep}: it must be at least 1")
        self.keep = keep
        self.show_every, self.pictures_every, self.pictures = show_every, pictures_every, pictures

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not outputs or "rollout" not in outputs:
            return
        rows = outputs["rollout"]
        step, folder = rows[0]["step"], Path(trainer.default_root_dir)
        write_rows(folder / "rollouts" / f"step-{step}.jsonl", rows)
        (folder / "rollouts" / f"step-{step - self.keep}.jsonl").unlink(missing_ok=True)
        last = module.step >= trainer.estimated_stepping_batches
        if last or (self.pictures_every and step % self.pictures_every == 0):
            for sample in outputs["samples"][: self.pictures]:
                save_picture(sample, folder / "images")
        if self.show_every and step % self.show_every == 0:
            self._show(max(rows, key=lambda row: row["total"]))

    @staticmethod
    def _show(row: dict[str, Any]) -> None:
        options = "  ".join(f"{a}) {o}" for a, o in zip(LETTERS, row["options"], strict=False))
        rewards = "  ".join(f"{name} {value:g}" for name, value in row["rewards"].items())
        Console().print(
            Panel(
                f"[bold]{escape(row['question'])}[/]\n{escape(options)}   gold {row['gold']}\n\n"
                f"{escape(row['text'])}\n\n[dim]{rewards}  total {row['total']:g}  "
                f"advantage {row['advantage']:+.2f}[/]",
                title=f"step {row['step']}: one of its best completions",
                title_align="left",
            )
        )


class QuestionPictures(Callback):
    """Keep the pictures of the first questions of each test set for the report.

    Args:
        pictures: questions of each test set.
    """

    def __init__(self, pictures: int = 6) -> None:
        self.pictures = pictures

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            for source in trainer.datamodule.questions.test.values():
                for index in range(min(self.pictures, len(source))):
                    save_picture(source[index], Path(trainer.default_root_dir) / "images")
