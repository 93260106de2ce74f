"""GRPO and its family: sample a group of completions for each question, and prefer what beats the others.

Departures from the papers' released trainers:

1. Rows are prompt-major from sampling to loss, so several prompts may share a device.
2. The papers' single on-policy update is the default; more updates a rollout are clipped against the
   log-probabilities that the policy had before the first of them.
3. A prompt above the limit is an error, never cut.
4. DAPO's dynamic sampling stops after ``redraws`` rounds instead of drawing until the step is full; groups
   that still have no spread stay, without advantage, and count in the loss's denominator. A group is drawn
   again if its rewards are all equal, over-long shaping aside; the paper asks for some right and some wrong,
   which says the same where the reward is nothing else. Which questions come in depends on the number of
   ranks, since each fills its own places.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_r1.algorithms.advantages import Advantages, GroupRelative, NoBaseline, mean_and_deviation, to_go
from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.losses import grpo_loss
from medvlm_r1.algorithms.trajectory import OVERLONG, Drawn, MicroBatch
from medvlm_r1.callbacks.rollout_rows import rollout_rows
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.rollout.engine import Sampling


class GRPO(VLMModule):
    """Group relative policy optimisation (arXiv 2402.03300), and what came of it.

    Args:
        sampling: group size, temperature, truncation and completion limit of rollouts.
        micro_batch: prompts in one forward and backward pass; memory, not result, depends on it.
        inner_epochs: passes over one rollout.
        minibatches: optimiser steps in one pass.
        clip_low, clip_high, beta, ratio, surrogate: see :func:`~medvlm_r1.algorithms.losses.grpo_loss`.
        aggregate: ``sequence`` and ``token`` as there; ``limit`` divides the sum over all tokens by rows
            times the limit of a completion (Dr. GRPO, arXiv 2503.20783).
        advantages: from rewards to advantages, see :mod:`~medvlm_r1.algorithms.advantages`.
        kl_in: where the KL estimate goes. ``loss``: into the loss, k3. ``reward``: the completion's sum of k1
            is a term of its reward (RLOO). ``token``: each token's advantage loses the k1 that is still to
            come (REINFORCE++, arXiv 2501.03262, equation 8).
        whiten: advantages minus their mean, over their standard deviation, over all tokens of the step
            (REINFORCE++, equation 10).
        redraws: rounds in which groups without reward spread are replaced by other questions' (dynamic
            sampling of DAPO, arXiv 2503.14476).
        overlong: share of the completion limit, up to it, over which a reward term falls from 0 to -1 (DAPO,
            equation 13); 0 leaves it out.
        importance_cap: weigh each token by how much likelier the trainer finds it than the sampler did,
            up to this (truncated importance sampling); ``None`` leaves tokens alone.
        name, shared: the arguments of :class:`~medvlm_r1.algorithms.base.VLMModule`.
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
        advantages: Advantages | None = None,
        aggregate: Literal["sequence", "token", "limit"] = "sequence",
        ratio: Literal["token", "sequence", "completion"] = "token",
        surrogate: Literal["clipped", "weighted"] = "clipped",
        kl_in: Literal["loss", "reward", "token"] = "loss",
        whiten: bool = False,
        redraws: int = 0,
        overlong: float = 0.0,
        importance_cap: float | None = None,
        name: str = "grpo",
        **shared: Any,
    ) -> None:
        super().__init__(name=name, **shared)
        if sampling.group_size < 2 or sampling.temperature == 0:
            raise ValueError(
                f"GRPO compares completions of one prompt: group_size {sampling.group_size} must be at "
                f"least 2 and temperature {sampling.temperature} above 0"
            )
        if min(micro_batch, inner_epochs, minibatches) < 1 or min(beta, redraws) < 0:
            raise ValueError(
                "micro_batch, inner_epochs and minibatches must be at least 1, beta and redraws not negative"
            )
        if not 0 <= overlong < 1:
            raise ValueError(f"overlong is {overlong}: it is a share of the completion limit, below 1")
        for name, value, known in (
            ("aggregate", aggregate, ("sequence", "token", "limit")),
            ("ratio", ratio, ("token", "sequence", "completion")),
            ("surrogate", surrogate, ("clipped", "weighted")),
            ("kl_in", kl_in, ("loss", "reward", "token")),
        ):
            if value not in known:
                raise ValueError(f"method.{name} is {value!r}: use {', '.join(map(repr, known))}")
        if ratio != "token" and (surrogate != "clipped" or kl_in == "token" or importance_cap is not None):
            raise ValueError(
                f"ratio={ratio} is one number a completion: surrogate=weighted, kl_in=token and "
                "importance_cap, which are of single tokens, do not go with it"
            )
        if ratio == "completion" and aggregate != "sequence":
            raise ValueError("ratio=completion counts a completion once: it goes with aggregate=sequence")
        if isinstance(advantages, NoBaseline) and not whiten:
            raise ValueError("advantages without a baseline only push up: they need whiten=true")
        if importance_cap is not None and importance_cap < 1:
            raise ValueError(f"importance_cap is {importance_cap}: it must be at least 1, or null")
        self.sampling, self.micro_batch = sampling, micro_batch
        self.inner_epochs, self.minibatches = inner_epochs, minibatches
        self.clip_low, self.clip_high, self.beta = clip_low, clip_high, beta
        self.advantages, self.aggregate = advantages or GroupRelative(), aggregate
        self.ratio, self.surrogate = ratio, surrogate
        self.kl_in, self.whiten = kl_in, whiten
        self.redraws, self.overlong = redraws, overlong
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
            self.policy.freeze_reference()

    def on_fit_start(self) -> None:
        self.policy.move_copies()

    def on_fit_end(self) -> None:
        self.policy.drop_reference()

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> dict[str, Any]:
        """One rollout over all prompts of this step, and the updates that follow from it."""
        self.policy.sync_sampling_model()
        first = self.rolled(prompts)
        drawn = self.redrawn(first)
        advantages, batches = self.weighed(drawn)
        with self.timed("train"):
            updates = [
                self.descend(minibatch)
                for _ in range(self.inner_epochs)
                for minibatch in _parts(batches, self.minibatches)
            ]
        self.log_step(first, drawn, advantages, updates)
        rows = rollout_rows(
            self.step, drawn.samples, drawn.rollout, drawn.answers, drawn.table, advantages, drawn.group_size
        )
        self.end_step()
        return {"rollout": rows, "samples": [prompt.sample for prompt in drawn.prompts]}

    def weighed(self, drawn: Drawn) -> tuple[Float[Tensor, " rows"], list[MicroBatch]]:
        """Each row's advantage, over its tokens on average, and the micro-batches that are trained with."""
        advantages = self.judged(drawn)
        batches = self.compared(self.split(drawn, advantages))
        if self.beta and self.kl_in == "reward":
            # all groups have a gradient with a KL term, so the rows are in the order in which they were drawn
            penalties = torch.cat([batch.penalty.sum(1) for batch in batches]).cpu()
            advantages = self.judged(replace(drawn, table=drawn.table.with_term("kl", penalties, -self.beta)))
            parts = advantages.to(self.device).split([len(batch.tokens) for batch in batches])
            batches = [replace(b, advantages=part) for b, part in zip(batches, parts, strict=True)]
        if self.whiten or (self.beta and self.kl_in == "token"):
            batches = self.by_token(batches)
            # masked tokens are 0, and all rows are in their order, as above
            means = [batch.advantages.sum(1) / batch.mask.sum(1).clamp(min=1) for batch in batches]
            advantages = torch.cat(means).cpu()
        return advantages, batches

    def redrawn(self, drawn: Drawn) -> Drawn:
        """With other questions in the place of groups that teach nothing."""
        tried = self._on_all_ranks(drawn)
        for attempt in range(self.redraws):
            spread = drawn.spread
            wanted = int(self.all_gather((~spread).sum().to(self.device)).max())
            if not wanted:
                break
            with self.timed("redraw"):
                fresh = self.trainer.datamodule.spare(wanted, self.step, attempt, tried)
            if not fresh:
                break
            other = self.rolled(fresh)
            tried |= self._on_all_ranks(other)  # a question draws the same completions within a step
            good = other.spread.nonzero().flatten().tolist()
            # the places that good ones fill are in the order of the prompts
            order = list(range(len(spread)))
            for place, found in zip((~spread).nonzero().flatten().tolist(), good, strict=False):
                order[place] = len(spread) + found
            drawn = drawn.beside(other, self.policy.pad_id).groups(order)
        return drawn

    def rolled(self, prompts: list[EncodedPrompt]) -> Drawn:
        """Completions with their rewards."""
        with self.timed("sample"):
            rollout, samples, answers = self.answer(prompts, self.sampling)
        with self.timed("score"):
            table = self.rewards.score(answers, samples)
            if self.overlong:
                slope = self.overlong * self.sampling.max_tokens
                beyond = (self.sampling.max_tokens - slope - rollout.lengths.cpu()) / slope
                table = table.with_term(OVERLONG, beyond.clamp(-1, 0))
        return Drawn(prompts, rollout, samples, answers, table)

    def _on_all_ranks(self, drawn: Drawn) -> set[str]:
        """Ids of the questions, of all ranks."""
        mine = [prompt.sample.id for prompt in drawn.prompts]
        if self.trainer.world_size == 1:
            return set(mine)
        every: list = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(every, mine)
        return {name for names in every for name in names}

    def judged(self, drawn: Drawn) -> Float[Tensor, " rows"]:
        """The advantages of this rank's rows among those of all ranks."""
        table, right = drawn.table, drawn.right
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if world > 1:

            def gathered(values: Tensor) -> Tensor:
                return self.all_gather(values.to(self.device)).flatten().cpu()

            table, right = table.map(gathered), gathered(right.float()).bool()
        return self.advantages(table, right, self.sampling.group_size).chunk(world)[rank]

    def by_token(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """With an advantage for each token: less the KL that is still to come, and whitened."""
        advantages = [batch.advantages[:, None].expand(batch.mask.shape) for batch in batches]
        if self.beta and self.kl_in == "token":
            advantages = [
                values - self.beta * to_go(batch.penalty)
                for values, batch in zip(advantages, batches, strict=True)
            ]
        if self.whiten:
            flat, mask = (
                torch.cat([part.flatten() for part in parts])[None]
                for parts in (advantages, [batch.mask for batch in batches])
            )
            mean, std = mean_and_deviation(flat, mask, self.over_ranks)
            advantages = [(values - mean) / (std + 1e-8) for values in advantages]
        return [
            replace(batch, advantages=torch.where(batch.mask, values, 0.0))
            for batch, values in zip(batches, advantages, strict=True)
        ]

    def over_ranks(self, sums: Tensor) -> Tensor:
        """Added up over ranks."""
        return self.all_gather(sums).reshape(-1, *sums.shape).sum(0)

    def split(self, drawn: Drawn, advantages: Float[Tensor, " rows"]) -> list[MicroBatch]:
        """Cut a rollout into micro-batches of whole groups, trimmed to their longest completion.

        Groups that cannot move the weights come last, and are silent.
        """
        advantages, pad_id = advantages.to(self.device), self.policy.pad_id
        loud, silent = self._by_gradient(advantages.view(len(drawn.prompts), -1))
        parts = [loud[start : start + self.micro_batch] for start in range(0, len(loud), self.micro_batch)]
        batches = [MicroBatch.of(drawn, advantages, part, pad_id) for part in parts]
        if silent:
            batches.append(replace(MicroBatch.of(drawn, advantages, silent, pad_id), silent=True))
        return batches

    def _by_gradient(self, advantages: Float[Tensor, "prompts group"]) -> tuple[list[int], list[int]]:
        """Prompts whose groups have a gradient, and the others; all where it matters which are together."""
        every = list(range(len(advantages)))
        if self.beta or self.whiten or self.minibatches > 1:
            return every, []
        loud = advantages.ne(0).any(1)
        # Every rank makes as many passes, and at least one, so that the optimiser steps as it would.
        count = max(1, int(self.all_gather(loud.sum()).max()))
        order = loud.int().argsort(descending=True, stable=True).tolist()
        return sorted(order[:count]), sorted(order[count:])

    @torch.no_grad()
    def compared(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """With log-probabilities from before the first of several updates, and of the reference."""
        with self.timed("reference"):
            if self.updates_per_step > 1 or (self.beta and self.kl_in != "loss"):
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
        denominator = self._denominator(minibatch)
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
                self.beta if self.kl_in == "loss" else 0.0,
                "sequence" if self.aggregate == "sequence" else "token",
                denominator,
                None if self.importance_cap is None else gap.exp().clamp(max=self.importance_cap),
                self.ratio,
                self.surrogate,
            )
            self.manual_backward(loss)
            gaps.append(gap[batch.mask].abs())
            for name, value in {**stats, "loss": loss.detach()}.items():
                sums[name] = sums.get(name, 0) + value
        with self.timed("update"):
            norm = self.apply_gradients()
        return {**sums, "grad_norm": norm, "gap": torch.cat(gaps)}

    def _denominator(self, minibatch: Sequence[MicroBatch]) -> float | Tensor:
        """What the loss's sum over rows or tokens is divided by.

        The strategy averages gradients over ranks, so a token mean over all ranks divides by the ranks' mean
        count.
        """
        rows = sum(len(batch.tokens) for batch in minibatch)
        if self.aggregate == "sequence":
            return rows
        if self.aggregate == "limit":
            return rows * self.sampling.max_tokens
        return self.all_gather(sum(batch.mask.sum() for batch in minibatch)).float().mean()

    def log_step(
        self,
        first: Drawn,
        drawn: Drawn,
        advantages: Float[Tensor, " rows"],
        updates: Sequence[dict[str, Tensor]],
    ) -> None:
        """What the rollout and its updates were like, averaged over rows, updates and ranks.

        Rewards and answers are of the step's own questions, before others took the place of some.
        """
        rollout, table = first.rollout, first.table
        redrawn = sum(a is not b for a, b in zip(first.prompts, drawn.prompts, strict=True))
        gap = updates[0].pop("gap")
        for update in updates[1:]:
            del update["gap"]
        summed = {name: torch.stack([u[name].float() for u in updates]).sum() for name in updates[0]}
        tokens = summed["tokens"].clamp(min=1)
        values = {
            "reward": table.total,
            **{f"reward_{name}": value for name, value in table.terms.items()},
            "accuracy": first.right,
            "well_formed": torch.tensor([answer.well_formed for answer in first.answers]),
            "tokens": rollout.lengths,
            "truncated": rollout.truncated,
            "groups_with_spread": advantages.view(len(drawn.prompts), -1).ne(0).any(1),
            **({"redrawn": torch.tensor(redrawn / len(first.prompts))} if self.redraws else {}),
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
