"""Alarms: warn when training goes nowhere."""

import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape

from medvlm_r1.runs.durable import LineLog


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
        spread = metrics.get("train/active_groups", 1.0)
        self._flat = 0 if spread > 0 else self._flat + 1
        truncated = metrics.get("train/truncated", 0.0)
        kl, loss = metrics.get("train/kl", 0.0), metrics.get("train/loss", 0.0)
        gap = metrics.get("train/sampling_logp_difference_p99", 0.0)
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
                "method.loss.tis_cap=2, or look with rollout=reference whether the engine errs",
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
        log = LineLog(Path(trainer.default_root_dir) / "alarms.jsonl")
        log.append({"step": step, "alarm": name, "message": message})
