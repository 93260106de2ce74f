"""Alarms: warn when training makes no progress."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, Trainer
from rich.console import Console
from rich.markup import escape

from medvlm_r1.runs.durable import LineLog

# Nats at the 99th percentile of tokens. Rounding to bf16 stays far below; reading freed memory is far above.
BROKEN_SAMPLER = 2.0
# Nats at the same place that no rounding explains. In fp32, engines differ from the trainer by less than 1e-5
# (experiments/vllm_rollouts); one that lost an update at a learning rate of 1e-4, by more than 1e-3
# (tests/rollout/test_vllm.py). In bf16, rounding makes about 0.03, and hides a single lost update.
SAMPLING_LOGP_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


class BrokenSamplerError(RuntimeError):
    """Sampling model and trained model are not the same model."""


class Alarms(Callback):
    """Warn when training makes no progress, on the console and in ``alarms.jsonl`` of the run folder.

    An alarm is raised once, and again only after its cause was absent for a step.

    Raises:
        BrokenSamplerError: log-probabilities of sampling model and trained model differ by more than
            :data:`BROKEN_SAMPLER` at 1 % of the tokens, unless ``on_sampler_difference`` is ``warn``.
    """

    def __init__(
        self,
        zero_advantage_steps: int = 10,  # consecutive steps in which all groups have equal rewards
        truncated_fraction: float = 0.5,  # of the completions, truncated at the token limit; from 0 to 1
        # Absolute difference between the log-probabilities of sampling model and trained model, in nats, at
        # the 99th percentile of tokens; by default that of the model's dtype.
        sampling_logp_difference: float | None = None,
        on_sampler_difference: Literal["stop", "warn"] = "stop",
    ) -> None:
        if on_sampler_difference not in ("stop", "warn"):
            raise ValueError(
                f"callbacks.alarms.on_sampler_difference is {on_sampler_difference!r}: use stop or warn"
            )
        self.on_sampler_difference = on_sampler_difference
        self.zero_advantage_steps, self.truncated_fraction = zero_advantage_steps, truncated_fraction
        self.sampling_logp_difference = sampling_logp_difference
        self._steps = 0  # consecutive zero-advantage steps
        self._active: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._steps = self._steps + 1 if metrics.get("train/frac_zero_advantage") == 1 else 0
        truncated = metrics.get("train/truncated", 0.0)
        kl, loss, norm = (metrics.get(f"train/{name}", 0.0) for name in ("kl", "loss", "grad_norm"))
        difference = metrics.get("train/sampling_logp_difference_p99", 0.0)
        allowed = self.sampling_logp_difference
        if allowed is None:
            allowed = SAMPLING_LOGP_DIFFERENCE[module.policy.sampling_model.dtype]
        alarms = {
            "zero_advantage": (
                self._steps >= self.zero_advantage_steps,
                f"all rewards within each group were equal for {self._steps} steps, so all advantages are 0: "
                "read rollouts/, raise method.sampling.temperature or method.sampling.group_size",
            ),
            "truncated": (
                truncated > self.truncated_fraction,
                f"{truncated:.0%} of the completions were truncated before an answer: raise "
                "model.recipe.max_completion_tokens",
            ),
            "not_finite": (
                not all(map(math.isfinite, (kl, loss, norm))),
                f"KL is {kl}, loss is {loss} and gradient norm is {norm}, so updates are skipped: lower the "
                "learning rate, or look for a token that has probability 0 under the reference model",
            ),
            "sampling_logp_difference": (
                not difference <= allowed,  # nan is an alarm
                f"log-probabilities of sampling and trained model differ by {difference:.2g} nats or more at "
                f"1 % of the tokens, where rounding makes less than {allowed:g}: check the engine with "
                "rollout=reference; if rounding is the cause, set method.loss.tis_cap=2",
            ),
            "no_loss_tokens": (
                metrics.get("train/loss_tokens", 1.0) == 0 or metrics.get("train/tokens", 2.0) <= 1,
                "the loss of this step has no tokens: every completion ended at once",
            ),
        }
        for name, (is_active, message) in alarms.items():
            if is_active and name not in self._active and trainer.is_global_zero:
                row = {"step": module.step - 1, "alarm": name, "message": message}
                Console().print(f"[bold red]ALARM[/] step {row['step']}: {escape(message)}")
                LineLog(Path(trainer.default_root_dir) / "alarms.jsonl").append(row)
            (self._active.add if is_active else self._active.discard)(name)
        # With a loss that is not a number, it is the trained model that is broken.
        broken = not difference <= BROKEN_SAMPLER and math.isfinite(loss)
        if broken and self.on_sampler_difference == "stop":
            raise BrokenSamplerError(
                f"step {module.step - 1}: log-probabilities of sampling and trained model differ by "
                f"{difference:.2g} nats or more at 1 % of the tokens, far more than rounding does: try "
                "rollout.record=off, then rollout=reference, and report which one helps; "
                "callbacks.alarms.on_sampler_difference=warn goes on"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "active": sorted(self._active)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._active = state_dict["steps"], set(state_dict["active"])
