"""Keep completions of training and pictures of questions in the run folder."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from medvlm_r1.callbacks.rollout_rows import rollout_rows, save_picture, write_rows
from medvlm_r1.data.sample import LETTERS


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
            raise ValueError(f"callbacks.rollouts.keep is {keep}: it must be at least 1")
        self.keep = keep
        self.show_every, self.pictures_every, self.pictures = show_every, pictures_every, pictures

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not outputs or "trajectory" not in outputs:
            return
        trajectory, step = outputs["trajectory"], module.step - 1  # the module counts the step as done
        rows, folder = rollout_rows(step, trajectory), Path(trainer.default_root_dir)
        write_rows(folder / "rollouts" / f"step-{step}.jsonl", rows)
        (folder / "rollouts" / f"step-{step - self.keep}.jsonl").unlink(missing_ok=True)
        last = module.step >= trainer.estimated_stepping_batches
        if last or (self.pictures_every and step % self.pictures_every == 0):
            for prompt in trajectory.prompts[: self.pictures]:
                save_picture(prompt.sample, folder / "images")
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
