"""Supervised fine-tuning on the gold answer or on reasoning that leads to it, comparable with GRPO.

Questions, their order, prompt, images, limits and evaluation are GRPO's; only the training signal differs.
The target is the gold letter in answer tags, or the question's rationale in think tags and the answer, in the
order that the prompt asks for. Only the completion carries loss.

Departure from the papers: Med-R1's SFT baseline also trains on the prompt, and its prompt differs from that
of its evaluation; MedVLM-R1 does not publish its baseline.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.losses import sft_loss
from medvlm_r1.data.sample import Phase, VQASample
from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.prompts import is_correct
from medvlm_r1.runs.shorten import shorten

Target = Int[Tensor, " tokens"]


class SFT(VLMModule):
    """Cross-entropy on the completion, the gold answer.

    Args:
        micro_batch: prompts in one forward and backward pass; changes memory, not the result.
        name, shared: the arguments of :class:`~medvlm_r1.algorithms.base.VLMModule`.
    """

    def __init__(self, *, micro_batch: int, name: str = "sft", **shared: Any) -> None:
        super().__init__(name=name, **shared)
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be at least 1")
        self.micro_batch = micro_batch

    def targets(self, sample: VQASample) -> Sequence[Target]:
        """Token ids of the completions of a question that are trained on, on the host."""
        return [self.policy.encoder.encode_target(sample, self.prompt)]

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> None:
        """Update the weights once; gradients accumulate over the micro-batches.

        The loss is the mean over all target tokens of the step. Without any, on all ranks, no weight changes.
        """
        targets = [self.targets(p.sample) for p in prompts]
        count = torch.tensor(float(sum(len(t) for own in targets for t in own)), device=self.device)
        denominator = self.all_gather(count).mean()
        total = torch.zeros((), device=self.device)
        with self.timed("train"):
            for start in range(0, len(prompts), self.micro_batch):
                part = slice(start, start + self.micro_batch)
                padded = pad_targets(targets[part], self.policy.pad_id)
                tokens, mask = (x.to(self.device) for x in padded)
                batch = collate(prompts[part], self.policy.pad_id, self.device)
                loss = sft_loss(self.policy.logprobs(batch, tokens, mask), mask, denominator)
                self.accumulate(loss, last=part.stop >= len(prompts))
                total += loss.detach()
        if not denominator:
            self.optimizers().zero_grad()  # a gradient of 0 would still move the weights by Adam's momentum
        with self.timed("update"):
            norm = self.apply_gradients()
        self.count_seen(prompts, int(count))
        self.log("train/loss", total, prog_bar=True, sync_dist=True)
        self.log("train/loss_tokens", count, sync_dist=True, reduce_fx="sum")
        self.log("train/grad_norm", norm)
        self.end_step()


class RationaleSFT(SFT):
    """SFT on each question's rationale and answer."""

    def targets(self, sample: VQASample) -> Sequence[Target]:
        return [self.policy.encoder.encode_target(sample, self.prompt, reasoned=True)]

    def fault(self, phase: Phase) -> Callable[[VQASample], str | None]:
        """As :meth:`VLMModule.fault`; a training question also needs a usable rationale."""
        fault = super().fault(phase)
        return fault if phase == "evaluate" else lambda sample: fault(sample) or self._target_fault(sample)

    def _target_fault(self, sample: VQASample) -> str | None:
        if not sample.rationale:
            return (
                "has no rationale, on which method=sft_rationale trains: fill in its column, which "
                "data.columns.rationale names, or take method=sft"
            )
        answer = self.prompt.parse(self.prompt.reasoned_target(sample), sample)
        if answer.reasoning != sample.rationale or not is_correct(answer, sample):
            return f"rationale {shorten(sample.rationale)} holds a think or answer tag: remove it"
        tokens, limit = len(self.targets(sample)[0]), self.greedy.max_tokens
        if tokens <= limit:
            return None
        return (
            f"rationale and answer have {tokens} tokens, above max_completion_tokens={limit}: shorten the "
            "rationale, or raise model.recipe.max_completion_tokens"
        )


def pad_targets(
    targets: Sequence[Sequence[Target]], pad_id: int
) -> tuple[Int[Tensor, "rows tokens"], Bool[Tensor, "rows tokens"]]:
    """Tokens and mask of the targets of each prompt, prompt-major.

    Every prompt gets as many rows as the one with most targets, at least one; rows without a target are
    outside the mask.
    """
    size, none = max(1, *map(len, targets)), torch.empty(0, dtype=torch.long)
    rows = [row for own in targets for row in (*own, *[none] * (size - len(own)))]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = pad_sequence([*rows, torch.zeros(1, dtype=torch.long)], True, pad_id)[:-1]  # at least one wide
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]
