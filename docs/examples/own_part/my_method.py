"""A method: GRPO with a KL penalty that fades out."""

from dataclasses import replace
from typing import Any

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.policy.encode import EncodedPrompt


class FadingKL(GRPO):
    """GRPO whose beta falls linearly to ``final`` over the run."""

    def __init__(self, *, final: float = 0.0, **grpo: Any) -> None:
        super().__init__(**grpo)
        self.initial, self.final = self.kl, final

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> dict[str, Any]:
        done = self.step / self.total_steps
        self.kl = replace(self.kl, beta=(1 - done) * self.initial.beta + done * self.final)
        self.log("train/beta", self.kl.beta)
        return super().training_step(prompts, batch_idx)
