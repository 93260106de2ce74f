"""Log completions of training and images of questions to the console and the run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from medvlm_r1.callbacks.rollout_rows import rollout_rows, save_image, write_rows
from medvlm_r1.data.sample import LETTERS
from medvlm_r1.tracking.completions import send_completions


class RolloutLogger(Callback):
    """Write the completions of each step to ``rollouts/step-N.jsonl``, and print one from time to time.

    It needs a ``training_step`` that returns ``{"trajectory": Trajectory}``.
    """

    def __init__(
        self,
        keep: int = 1000,  # latest steps whose completions stay on disk
        show_every: int = 25,  # steps between two completions on the console; 0 shows none
        images_every: int = 25,  # steps between two with images saved for the report; 0 saves the last step's
        images_per_step: int = 4,  # questions
        track: Sequence[str] = (),  # of such steps, the loggers get "completions", and with them "images"
    ) -> None:
        if keep < 1:
            raise ValueError(f"callbacks.rollouts.keep is {keep}: it must be at least 1")
        self.keep, self.show_every = keep, show_every
        self.images_every, self.images_per_step, self.track = images_every, images_per_step, track

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not outputs or "trajectory" not in outputs:
            return
        trajectory, step = outputs["trajectory"], module.step - 1  # the module has counted this step
        rows, folder = rollout_rows(step, trajectory), Path(trainer.default_root_dir)
        write_rows(folder / "rollouts" / f"step-{step}.jsonl", rows)
        (folder / "rollouts" / f"step-{step - self.keep}.jsonl").unlink(missing_ok=True)
        is_last = module.step >= module.total_steps
        if is_last or (self.images_every and step % self.images_every == 0):
            for prompt in trajectory.prompts[: self.images_per_step]:
                save_image(prompt.sample, folder / "images")
            if "completions" in self.track:
                images = folder / "images" if "images" in self.track else None
                shown = rows[: self.images_per_step * trajectory.group_size]
                send_completions(trainer.loggers, step, shown, images)
        if self.show_every and step % self.show_every == 0:
            row = max(rows, key=lambda row: row["total"])
            options = "  ".join(f"{a}) {o}" for a, o in zip(LETTERS, row["options"], strict=False))
            rewards = "  ".join(f"{name} {value:g}" for name, value in row["rewards"].items())
            text = (
                f"[bold]{escape(row['question'])}[/]\n{escape(options)}   gold {row['gold']}\n\n"
                f"{escape(row['text'])}\n\n[dim]{rewards}  total {row['total']:g}  "
                f"advantage {row['advantage']:+.2f}[/]"
            )
            title = f"step {step}: one of its best completions"
            Console().print(Panel(text, title=title, title_align="left"))


class QuestionImages(Callback):
    """Save the images of the first ``per_test_set`` questions of each test set for the report."""

    def __init__(self, per_test_set: int = 6) -> None:
        self.per_test_set = per_test_set

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            for source in trainer.datamodule.questions.test.values():
                for index in range(min(self.per_test_set, len(source))):
                    save_image(source[index], Path(trainer.default_root_dir) / "images")
