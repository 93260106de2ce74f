"""GRPO: sample a group of completions for each question, and prefer what beats its group.

Departures from the papers' released trainers:

1. Rows are prompt-major from sampling to loss, so several prompts may share a device.
2. The papers' single on-policy update is the default; more updates a rollout are clipped against the
   log-probabilities that the policy had before the first of them.
3. A prompt above the limit is an error, never cut.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.data.sample import VQASample
from medvlm_r1.dialogue import Answer, is_right
from medvlm_r1.module import VLMModule
from medvlm_r1.objective import group_advantages, grpo_loss
from medvlm_r1.policy.encode import EncodedPrompt, PromptBatch, collate
from medvlm_r1.rewards import RewardTable
from medvlm_r1.rollout.engine import Rollout, Sampling
from medvlm_r1.trace import rollout_rows


@dataclass(frozen=True)
class MicroBatch:
    """Some prompts of a rollout with all their completions; what one forward pass holds.

    Attributes:
        sampled: log-probabilities that the sampler recorded.
        silent: no advantage among them and no KL term, so there is no gradient: they only count.
    """

    prompts: PromptBatch
    tokens: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    advantages: Float[Tensor, " rows"]
    sampled: Float[Tensor, "rows tokens"]
    silent: bool = False
    old_logprobs: Float[Tensor, "rows tokens"] | None = None
    ref_logprobs: Float[Tensor, "rows tokens"] | None = None


class GRPO(VLMModule):
    """Group relative policy optimisation (arXiv 2402.03300).

    Args:
        sampling: group size, temperature, truncation and completion limit of rollouts.
        micro_batch: prompts in one forward and backward pass; memory, not result, depends on it.
        inner_epochs: passes over one rollout.
        minibatches: optimiser steps in one pass.
        clip_low, clip_high, beta, aggregate: see :func:`~medvlm_r1.objective.grpo_loss`.
        advantage_scale: see :func:`~medvlm_r1.objective.group_advantages`.
        importance_cap: weigh each token by how much likelier the trainer finds it than the sampler did,
            up to this (truncated importance sampling); ``None`` leaves tokens alone.
        shared: the arguments of :class:`~medvlm_r1.module.VLMModule`.
    """

    def __init__(
        self,
        *,
        sampling: Sampling,
        micro_batch: int,
        inner_epochs: int = 1,
        minibatches: int = 1,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        beta: float = 0.04,
        advantage_scale: Literal["std", "none"] = "std",
        aggregate: Literal["sequence", "token"] = "sequence",
        importance_cap: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if sampling.group_size < 2 or sampling.temperature == 0:
            raise ValueError(
                f"GRPO compares completions of one prompt: group_size {sampling.group_size} must be at "
                f"least 2 and temperature {sampling.temperature} above 0"
            )
        if min(micro_batch, inner_epochs, minibatches) < 1 or beta < 0:
            raise ValueError(
                "micro_batch, inner_epochs and minibatches must be at least 1, beta not negative"
            )
        if importance_cap is not None and importance_cap < 1:
            raise ValueError(f"importance_cap is {importance_cap}: it must be at least 1, or null")
        self.sampling, self.micro_batch = sampling, micro_batch
        self.inner_epochs, self.minibatches = inner_epochs, minibatches
        self.clip_low, self.clip_high, self.beta = clip_low, clip_high, beta
        self.advantage_scale, self.aggregate = advantage_scale, aggregate
        self.importance_cap = importance_cap
        self.updates_per_step = inner_epochs * minibatches

    def setup(self, stage: str) -> None:
        prompts = self.trainer.datamodule.prompts_per_step // self.trainer.world_size
        held = math.ceil(prompts / self.micro_batch)
        if self.minibatches > held:
            raise ValueError(
                f"{self.minibatches} minibatches of {held} micro-batches: lower method.minibatches or "
                "method.micro_batch"
            )
        if stage == "fit" and self.beta:
            self.policy.keep_reference()

    def on_fit_start(self) -> None:
        self.policy.place_copies()

    def on_fit_end(self) -> None:
        self.policy.drop_reference()

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> dict[str, Any]:
        """One rollout over all prompts of this step, and the updates that follow from it."""
        self.policy.refresh_whole()
        with self.timed("sample"):
            rollout, samples, answers = self.answer(prompts, self.sampling)
        with self.timed("score"):
            table = self.rewards.score(answers, samples)
        advantages = group_advantages(table.total, self.sampling.group_size, self.advantage_scale)
        batches = self.compared(self.split(prompts, rollout, advantages.to(self.device)))
        with self.timed("train"):
            updates = [
                self.descend(minibatch)
                for _ in range(self.inner_epochs)
                for minibatch in _parts(batches, self.minibatches)
            ]
        self.log_step(rollout, table, answers, samples, updates)
        rows = rollout_rows(self.step, samples, rollout, answers, table, advantages, self.sampling.group_size)
        self.end_step()
        return {"rollout": rows}

    def split(
        self, prompts: Sequence[EncodedPrompt], rollout: Rollout, advantages: Float[Tensor, " rows"]
    ) -> list[MicroBatch]:
        """Cut a rollout into micro-batches of whole groups, trimmed to their longest completion.

        Groups that cannot move the weights come last, and are silent.
        """
        loud, silent = self._by_gradient(advantages.view(len(prompts), -1))
        parts = [loud[start : start + self.micro_batch] for start in range(0, len(loud), self.micro_batch)]
        batches = [self._micro_batch(prompts, rollout, advantages, part) for part in parts]
        if silent:
            rest = self._micro_batch(prompts, rollout, advantages, silent)
            batches.append(replace(rest, silent=True))
        return batches

    def _by_gradient(self, advantages: Float[Tensor, "prompts group"]) -> tuple[list[int], list[int]]:
        """Prompts whose groups have a gradient, and the others; all where it matters which are together."""
        every = list(range(len(advantages)))
        if self.beta or self.minibatches > 1:
            return every, []
        loud = advantages.ne(0).any(1)
        # Every rank makes as many passes, and at least one, so that the optimiser steps as it would.
        count = max(1, int(self.all_gather(loud.sum()).max()))
        order = loud.int().argsort(descending=True, stable=True).tolist()
        return sorted(order[:count]), sorted(order[count:])

    def _micro_batch(
        self,
        prompts: Sequence[EncodedPrompt],
        rollout: Rollout,
        advantages: Float[Tensor, " rows"],
        chosen: Sequence[int],
    ) -> MicroBatch:
        group = torch.arange(self.sampling.group_size)
        rows = (torch.tensor(chosen)[:, None] * len(group) + group).flatten().to(rollout.tokens.device)
        length = int(rollout.lengths[rows].max())
        return MicroBatch(
            prompts=collate([prompts[i] for i in chosen], self.policy.pad_id, self.device),
            tokens=rollout.tokens[rows, :length],
            mask=rollout.mask[rows, :length],
            advantages=advantages[rows],
            sampled=rollout.logprobs[rows, :length],
        )

    @torch.no_grad()
    def compared(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """With log-probabilities from before the first of several updates, and of the reference."""
        with self.timed("reference"):
            if self.updates_per_step > 1:
                batches = [b if b.silent else replace(b, old_logprobs=self.logprobs(b)) for b in batches]
            if self.beta:
                batches = [replace(b, ref_logprobs=self.reference(b)) for b in batches]
        return batches

    def logprobs(self, batch: MicroBatch) -> Float[Tensor, "rows tokens"]:
        return self.policy.logprobs(batch.prompts, batch.tokens, batch.mask, self.sampling.temperature)

    def reference(self, batch: MicroBatch) -> Float[Tensor, "rows tokens"]:
        return self.policy.reference_logprobs(
            batch.prompts, batch.tokens, batch.mask, self.sampling.temperature
        )

    def descend(self, minibatch: Sequence[MicroBatch]) -> dict[str, Tensor]:
        """One optimiser step; gradients add up over the micro-batches.

        Returns:
            The loss, the gradients' norm before clipping, :func:`grpo_loss`'s sums over tokens, and by
            ``gap`` how far each token's log-probability lies from the sampler's.
        """
        rows = sum(len(batch.tokens) for batch in minibatch)
        tokens = sum(batch.mask.sum() for batch in minibatch)
        # The strategy averages gradients over ranks, so a token mean over all ranks divides by the
        # ranks' mean count.
        denominator = rows if self.aggregate == "sequence" else self.all_gather(tokens).float().mean()
        sums: dict[str, Tensor] = {}
        gaps = []
        for batch in minibatch:
            if batch.silent:
                continue
            logprobs = self.logprobs(batch)
            old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
            gap = old - batch.sampled
            loss, stats = grpo_loss(
                logprobs,
                old,
                batch.ref_logprobs,
                batch.advantages,
                batch.mask,
                self.clip_low,
                self.clip_high,
                self.beta,
                self.aggregate,
                denominator,
                None if self.importance_cap is None else gap.exp().clamp(max=self.importance_cap),
            )
            self.manual_backward(loss)
            gaps.append(gap[batch.mask].abs())
            for name, value in {**stats, "loss": loss.detach()}.items():
                sums[name] = sums.get(name, 0) + value
        with self.timed("update"):
            norm = self.apply_gradients()
        return {**sums, "grad_norm": norm, "gap": torch.cat(gaps)}

    def log_step(
        self,
        rollout: Rollout,
        table: RewardTable,
        answers: Sequence[Answer],
        samples: Sequence[VQASample],
        updates: Sequence[dict[str, Tensor]],
    ) -> None:
        """What the rollout and its updates were like, averaged over rows, updates and ranks."""
        groups = table.total.view(-1, self.sampling.group_size)
        gap = updates[0].pop("gap")
        for update in updates[1:]:
            del update["gap"]
        summed = {name: torch.stack([u[name].float() for u in updates]).sum() for name in updates[0]}
        tokens = summed["tokens"].clamp(min=1)
        values = {
            "reward": table.total,
            **{f"reward_{name}": value for name, value in table.terms.items()},
            "accuracy": torch.tensor([is_right(a, s) for a, s in zip(answers, samples, strict=True)]),
            "well_formed": torch.tensor([a.well_formed for a in answers]),
            "tokens": rollout.lengths,
            "truncated": rollout.truncated,
            "groups_with_spread": groups.amax(1) > groups.amin(1),
            "kept_mass": rollout.kept_mass[rollout.mask],
            "loss": summed["loss"] / len(updates),
            "grad_norm": summed["grad_norm"] / len(updates),
            "kl": summed["kl"] / tokens,
            "clipped": summed["clipped"] / tokens,
            "ratio": summed["ratio"] / tokens,
            "loss_tokens": summed["tokens"] / len(updates),
            "gap_mean": gap,
            "gap_p99": gap.quantile(0.99),
        }
        for name, value in values.items():
            shown = name in ("reward", "kl", "accuracy")
            # Rewards are scored on the host; NCCL averages over ranks on the device.
            self.log(f"train/{name}", value.float().mean().to(self.device), prog_bar=shown, sync_dist=True)


def _parts(batches: Sequence[MicroBatch], number: int) -> Iterator[Sequence[MicroBatch]]:
    """Cut into ``number`` parts of equal size, up to one micro-batch."""
    bounds = [len(batches) * i // number for i in range(number + 1)]
    for start, end in pairwise(bounds):
        yield batches[start:end]
