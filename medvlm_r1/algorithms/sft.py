"""Supervised fine-tuning on the gold answer or on reasoning that leads to it, comparable with GRPO.

Questions, their order, prompt, images, limits and evaluation are GRPO's; only the training signal differs.
The target is the gold letter in answer tags, or the question's rationale in think tags and the answer, in the
order that the prompt asks for. Only the completion carries loss.

Departure from the papers: Med-R1's SFT baseline also trains on the prompt, and its prompt differs from that
of its evaluation; MedVLM-R1 does not publish its baseline.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.losses import sft_loss
from medvlm_r1.data.sample import Phase, VQASample
from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.prompts import is_correct
from medvlm_r1.runs.shorten import shorten


class SFT(VLMModule):
    """Cross-entropy on the completion.

    Args:
        micro_batch: prompts in one forward and backward pass; changes memory, not the result.
        target: ``answer`` trains on the gold answer alone, ``rationale`` on the question's rationale too.
        name, shared: the arguments of :class:`~medvlm_r1.algorithms.base.VLMModule`.
    """

    def __init__(
        self,
        *,
        micro_batch: int,
        target: Literal["answer", "rationale"] = "answer",
        name: str = "sft",
        **shared: Any,
    ) -> None:
        super().__init__(name=name, **shared)
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be at least 1")
        if target not in ("answer", "rationale"):
            raise ValueError(f"method.target is {target!r}: use 'answer' or 'rationale'")
        self.micro_batch, self.reasoned = micro_batch, target == "rationale"

    def fault(self, phase: Phase) -> Callable[[VQASample], str | None]:
        """As :meth:`VLMModule.fault`; a training question needs a usable rationale where it is trained on."""
        fault = super().fault(phase)
        if phase == "evaluate" or not self.reasoned:
            return fault
        return lambda sample: fault(sample) or self._target_fault(sample)

    def _target_fault(self, sample: VQASample) -> str | None:
        if not sample.rationale:
            return (
                "has no rationale, on which method.target=rationale trains: fill in its column, which "
                "data.columns.rationale names, or take method.target=answer"
            )
        answer = self.prompt.parse(self.prompt.reasoned_target(sample), sample)
        if answer.reasoning != sample.rationale or not is_correct(answer, sample):
            return f"rationale {shorten(sample.rationale)} holds a think or answer tag: remove it"
        tokens, limit = len(self.encode_target(sample)), self.greedy.max_tokens
        if tokens <= limit:
            return None
        return (
            f"rationale and answer have {tokens} tokens, above max_completion_tokens={limit}: shorten the "
            "rationale, or raise model.recipe.max_completion_tokens"
        )

    def encode_target(self, sample: VQASample) -> Int[Tensor, " tokens"]:
        """Token ids of a question's target, on the host."""
        return self.policy.encoder.encode_target(sample, self.prompt, self.reasoned)

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> None:
        """Update the weights once; gradients accumulate over the micro-batches."""
        targets = [self.encode_target(p.sample).to(self.device) for p in prompts]
        count = torch.tensor(float(sum(len(t) for t in targets)), device=self.device)
        denominator = self.all_gather(count).mean()
        total = torch.zeros((), device=self.device)
        with self.timed("train"):
            for start in range(0, len(prompts), self.micro_batch):
                part = slice(start, start + self.micro_batch)
                tokens = pad_sequence(targets[part], batch_first=True, padding_value=self.policy.pad_id)
                lengths = torch.tensor([len(t) for t in targets[part]], device=self.device)
                mask = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
                batch = collate(prompts[part], self.policy.pad_id, self.device)
                loss = sft_loss(self.policy.logprobs(batch, tokens, mask), mask, denominator)
                self.accumulate(loss, last=part.stop >= len(prompts))
                total += loss.detach()
        with self.timed("update"):
            norm = self.apply_gradients()
        self.count_seen(prompts, int(count))
        self.log("train/loss", total, prog_bar=True, sync_dist=True)
        self.log("train/loss_tokens", count, sync_dist=True, reduce_fx="sum")
        self.log("train/grad_norm", norm)
        self.end_step()
