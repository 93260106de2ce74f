"""Supervised fine-tuning on the gold answer, comparable with GRPO.

Questions, their order, prompt, images, limits and evaluation are GRPO's; only the training signal differs.
The target is the gold letter in answer tags, and only the completion carries loss.

Departure from the papers: Med-R1's SFT baseline also trains on the prompt, and its prompt differs from that
of its evaluation; MedVLM-R1 does not publish its baseline.
"""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.losses import sft_loss
from medvlm_r1.policy.encode import EncodedPrompt, collate


class SFT(VLMModule):
    """Cross-entropy on the completion.

    Args:
        micro_batch: prompts in one forward and backward pass; changes memory, not the result.
        name, shared: the arguments of :class:`~medvlm_r1.algorithms.base.VLMModule`.
    """

    def __init__(self, *, micro_batch: int, name: str = "sft", **shared: Any) -> None:
        super().__init__(name=name, **shared)
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be at least 1")
        self.micro_batch = micro_batch

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> None:
        """Update the weights once; gradients accumulate over the micro-batches."""
        targets = [self.policy.encoder.encode_target(p.sample, self.prompt).to(self.device) for p in prompts]
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
