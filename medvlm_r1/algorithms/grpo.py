"""GRPO and its family, in the order of the paper: sample, score, compare within a group, update.

Departures from the papers' released trainers:

1. Rows are prompt-major from sampling to loss, so several prompts may share a device.
2. A rollout may have several updates (the papers take one): they are clipped against log pi_old, computed
   before the first of them.
3. A prompt above the limit is an error, never cut.
4. DAPO's dynamic sampling ends after ``dynamic_sampling_rounds`` rounds instead of sampling until the step
   is full. Groups without reward spread that remain get no advantage, and count in the loss's denominator. A
   group is replaced if each of its reward terms is constant, over-long shaping aside; the paper replaces
   groups that are all right or all wrong, which is the same for a reward of 0 or 1. The replacements depend
   on the number of ranks, since each rank fills its own places.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_r1.algorithms.advantages import Advantages, GroupRelative, NoBaseline, masked_mean_std
from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.kl import KLPenalty
from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.algorithms.metrics import step_metrics
from medvlm_r1.algorithms.sampling import sample_trajectory
from medvlm_r1.algorithms.trajectory import OVERLONG, MicroBatch, Trajectory
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.rollout.engine import Sampling, sync_weights


class GRPO(VLMModule):
    """Group relative policy optimisation (arXiv 2402.03300) and its family.

    Args:
        sampling: group size, temperature, truncation and completion limit of rollouts.
        micro_batch: prompts in one forward and backward pass; changes memory, not the result.
        num_iterations: passes over one rollout.
        num_minibatches: updates in one pass; a step has ``num_iterations * num_minibatches``.
        loss: the policy loss.
        advantages: the advantage estimator, see :mod:`~medvlm_r1.algorithms.advantages`.
        beta, kl_placement: see :class:`~medvlm_r1.algorithms.kl.KLPenalty`.
        normalize_advantages: subtract the mean and divide by the standard deviation over all tokens of the
            step (REINFORCE++, arXiv 2501.03262, equation 10).
        dynamic_sampling_rounds: rounds in which other questions replace groups without reward spread (DAPO,
            arXiv 2503.14476).
        overlong_buffer: share of the completion limit, at its end, over which a reward term falls from 0 to
            -1 (DAPO, equation 13); 0 adds no term.
        name, shared: the arguments of :class:`~medvlm_r1.algorithms.base.VLMModule`.
    """

    def __init__(
        self,
        *,
        sampling: Sampling,
        micro_batch: int,
        num_iterations: int = 1,
        num_minibatches: int = 1,
        loss: PolicyLoss | None = None,
        advantages: Advantages | None = None,
        beta: float = 0.04,
        kl_placement: Literal["loss", "reward", "token"] = "loss",
        normalize_advantages: bool = False,
        dynamic_sampling_rounds: int = 0,
        overlong_buffer: float = 0.0,
        name: str = "grpo",
        **shared: Any,
    ) -> None:
        super().__init__(name=name, **shared)
        self.loss, self.kl = loss or PolicyLoss(), KLPenalty(beta, kl_placement)
        self.check(sampling, self.loss, advantages, kl_placement, normalize_advantages)
        if min(micro_batch, num_iterations, num_minibatches) < 1:
            raise ValueError("micro_batch, num_iterations and num_minibatches must be at least 1")
        if dynamic_sampling_rounds < 0 or not 0 <= overlong_buffer < 1:
            raise ValueError(
                f"dynamic_sampling_rounds {dynamic_sampling_rounds} must not be negative; overlong_buffer "
                f"{overlong_buffer} is a share of the completion limit, below 1"
            )
        self.sampling, self.micro_batch = sampling, micro_batch
        self.num_iterations, self.num_minibatches = num_iterations, num_minibatches
        self.updates_per_step = num_iterations * num_minibatches
        self.advantages, self.normalize_advantages = advantages or GroupRelative(), normalize_advantages
        self.dynamic_sampling_rounds, self.overlong_buffer = dynamic_sampling_rounds, overlong_buffer

    @staticmethod
    def check(
        sampling: Sampling,
        loss: PolicyLoss,
        advantages: Advantages | None = None,
        kl_placement: str = "loss",
        normalize_advantages: bool = False,
        **settings: Any,
    ) -> None:
        """Check settings that must go together; raises ``ValueError``. It needs no model."""
        if sampling.group_size < 2 or sampling.temperature == 0:
            raise ValueError(
                "GRPO compares completions of one prompt: method.sampling.group_size "
                f"{sampling.group_size} must be at least 2 and method.sampling.temperature "
                f"{sampling.temperature} above 0"
            )
        if isinstance(advantages, NoBaseline) and not normalize_advantages:
            raise ValueError(
                "advantages without a baseline only push up: set method.normalize_advantages=true"
            )
        if kl_placement == "token" and loss.importance_sampling_level != "token":
            raise ValueError("method.kl_placement=token needs method.loss.importance_sampling_level=token")

    def setup(self, stage: str) -> None:
        prompts = self.trainer.datamodule.prompts_per_step // self.trainer.world_size
        batches = math.ceil(prompts / self.micro_batch)
        if self.num_minibatches > batches:
            raise ValueError(
                f"{self.num_minibatches} minibatches cannot share {batches} micro-batches: lower "
                "method.num_minibatches or method.micro_batch"
            )
        if stage == "fit" and self.kl.beta:
            self.to(self.trainer.strategy.root_device)  # else the host holds a copy of the weights
            self.policy.freeze_reference()

    def on_fit_end(self) -> None:
        self.policy.drop_reference()

    def training_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> dict[str, Any]:
        """Sample completions of all prompts of this step, and update the policy on them."""
        sync_weights(self.engine, self.policy)
        sampled = self.sample(prompts)  # G completions each, parsed and rewarded
        trajectory = self.dynamic_sampling(sampled)  # DAPO; the identity for 0 rounds
        trajectory = self.score_logprobs(trajectory)  # log pi_old and log pi_ref, where something needs them
        trajectory = self.assign_advantages(trajectory)  # A = (r - mean) / std for GRPO
        with self.timed("train"):
            minibatches = self.split_minibatches(trajectory)
            updates = [self.update_minibatch(m) for _ in range(self.num_iterations) for m in minibatches]
        lengths = self.gather(sampled.rollout.lengths.float())
        metrics = step_metrics(sampled, trajectory, updates)
        self.log_metrics(metrics | {"tokens_p95": lengths.quantile(0.95)})
        self.end_step()
        return {"trajectory": trajectory}

    def sample(self, prompts: list[EncodedPrompt]) -> Trajectory:
        """Sample, parse and reward G completions of each prompt."""
        trajectory = sample_trajectory(self, prompts, self.sampling)
        lengths = trajectory.rollout.lengths
        self.count_seen(prompts, int(lengths.sum()))
        if not self.overlong_buffer:
            return trajectory
        buffer = self.overlong_buffer * self.sampling.max_tokens
        penalty = (self.sampling.max_tokens - buffer - lengths.cpu()) / buffer
        return trajectory.with_reward(OVERLONG, penalty.clamp(-1, 0))

    def dynamic_sampling(self, trajectory: Trajectory) -> Trajectory:
        """Replace groups without reward spread by other questions' groups that have some (DAPO)."""
        if not self.dynamic_sampling_rounds:
            return trajectory
        first, other, tried = trajectory, trajectory, set()
        for attempt in range(self.dynamic_sampling_rounds):
            # All ranks' questions, each once: a question gets the same completions within a step.
            tried.update(*self.gather_objects([prompt.sample.id for prompt in other.prompts]))
            wanted = int(self.gather((~trajectory.has_reward_spread).sum()).max())
            if not wanted:
                break
            with self.timed("dynamic_sampling"):
                spare = self.trainer.datamodule.spare(wanted, self.step, attempt, tried)
            if not spare:
                break
            other = self.sample(spare)
            trajectory = trajectory.fill(other, self.policy.pad_id)
        replaced = [a is not b for a, b in zip(first.prompts, trajectory.prompts, strict=True)]
        self.log_metrics({"replaced_groups": torch.tensor(replaced)})
        return trajectory

    @torch.no_grad()
    def score_logprobs(self, trajectory: Trajectory) -> Trajectory:
        """Add log pi_old, for several updates or a KL penalty before the loss, and log pi_ref."""
        several, size = self.updates_per_step > 1, (self.micro_batch, self.policy.pad_id)
        with self.timed("reference"):
            return replace(
                trajectory,
                old_logprobs=trajectory.per_token(self.logprobs, *size)
                if several or self.kl.before_loss
                else None,
                ref_logprobs=trajectory.per_token(self.ref_logprobs, *size) if self.kl.beta else None,
            )

    def assign_advantages(self, trajectory: Trajectory) -> Trajectory:
        """Add the advantages: per row, or per token where a KL penalty or the normalisation is per token."""
        advantages = self._compute_advantages(self.kl.penalise(trajectory)).to(self.device)
        penalty, mask = self.kl.token_penalty(trajectory), trajectory.rollout.mask
        if penalty is not None or self.normalize_advantages:
            per_token = advantages[:, None].expand(mask.shape)
            per_token = per_token if penalty is None else per_token - penalty
            if self.normalize_advantages:
                mean, std = masked_mean_std(per_token, mask, self._sum_over_ranks)
                per_token = (per_token - mean) / (std + 1e-8)
            advantages = torch.where(mask, per_token, 0.0)
        return replace(trajectory, advantages=advantages)

    def split_minibatches(self, trajectory: Trajectory) -> list[list[MicroBatch]]:
        """Cut a trajectory into minibatches of micro-batches of whole groups.

        Zero-advantage groups go into a last micro-batch that is skipped, unless a KL term gives them a
        gradient. With several updates none is skipped: passes of other micro-batches than those of log pi_old
        round differently, and the ratio of the first update would not be 1.
        """
        pad_id, prompts = self.policy.pad_id, list(range(len(trajectory.prompts)))
        skipped: list[int] = []
        if not (self.kl.beta or self.normalize_advantages or self.updates_per_step > 1):
            active = trajectory.is_active
            # Every rank makes as many passes, and at least one, so that all optimisers step.
            count = max(1, int(self.gather(active.sum()).max()))
            order = active.int().argsort(descending=True, stable=True).tolist()
            prompts, skipped = sorted(order[:count]), sorted(order[count:])
        batches = trajectory.micro_batches(prompts, self.micro_batch, pad_id)
        if skipped:
            batches.append(replace(MicroBatch.of(trajectory, skipped, pad_id), zero_advantage=True))
        bounds = [len(batches) * i // self.num_minibatches for i in range(self.num_minibatches + 1)]
        return [batches[start:end] for start, end in pairwise(bounds)]

    def update_minibatch(self, minibatch: Sequence[MicroBatch]) -> dict[str, Tensor]:
        """Update the weights once; gradients accumulate over the micro-batches.

        Returns:
            ``loss``, ``grad_norm`` before clipping, the sums of
            :class:`~medvlm_r1.algorithms.losses.PolicyLoss`, and ``sampling_logp_difference``: the absolute
            difference of log pi_old and the sampler's log-probability, per token.
        """
        denominator = self._denominator(minibatch)
        sums: dict[str, Tensor] = {}
        differences = []
        active = [batch for batch in minibatch if not batch.zero_advantage]
        for batch in active:
            logprobs = self.logprobs(batch)
            old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
            sampling, ref = batch.sampling_logprobs, batch.ref_logprobs
            loss, stats = self.loss(
                logprobs, old, ref, batch.advantages, batch.mask, self.kl.loss_weight, denominator, sampling
            )
            self.accumulate(loss, last=batch is active[-1])
            differences.append((old - sampling)[batch.mask].abs())
            for name, value in {**stats, "loss": loss.detach()}.items():
                sums[name] = sums.get(name, 0) + value
        with self.timed("update"):
            norm = self.apply_gradients()
        return {**sums, "grad_norm": norm, "sampling_logp_difference": torch.cat(differences)}

    def logprobs(self, batch: MicroBatch) -> Float[Tensor, "rows tokens"]:
        """log pi of each token, at the sampling temperature."""
        return self.policy.logprobs(batch.prompts, batch.tokens, batch.mask, self.sampling.temperature)

    def ref_logprobs(self, batch: MicroBatch) -> Float[Tensor, "rows tokens"]:
        """log pi_ref of each token, at the sampling temperature."""
        return self.policy.reference_logprobs(
            batch.prompts, batch.tokens, batch.mask, self.sampling.temperature
        )

    def _compute_advantages(self, trajectory: Trajectory) -> Float[Tensor, " rows"]:
        """Advantages of this rank's rows; the estimator sees the rewards of all ranks."""
        rewards = trajectory.rewards.map(lambda values: self.gather(values).flatten().cpu())
        correct = self.gather(trajectory.correct.float()).flatten().bool().cpu()
        advantages = self.advantages(rewards, correct, self.sampling.group_size)
        return advantages.chunk(self.trainer.world_size)[self.trainer.global_rank]

    def _denominator(self, minibatch: Sequence[MicroBatch]) -> float | Tensor:
        """Denominator of the loss's sum over rows or tokens.

        The strategy averages gradients over ranks, so a token mean over all ranks divides by the ranks' mean
        count.
        """
        rows = sum(len(batch.tokens) for batch in minibatch)
        if self.loss.loss_type == "sequence":
            return rows
        if self.loss.loss_type == "limit":
            return rows * self.sampling.max_tokens
        return self.all_gather(sum(batch.mask.sum() for batch in minibatch)).float().mean()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.gather(values).sum(0)
