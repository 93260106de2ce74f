"""Completions of one training step with rewards, log-probabilities and advantages; micro-batches of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medvlm_r1.algorithms.advantages import in_groups
from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import EncodedPrompt, PromptBatch, collate
from medvlm_r1.prompts import Answer, is_correct
from medvlm_r1.rewards import RewardTable
from medvlm_r1.rollout.engine import Rollout

OVERLONG = "overlong"  # the reward term of completions near their limit

PerToken = Float[Tensor, "rows tokens"]
Item = TypeVar("Item")


def rows_of(prompts: Iterable[Item], group_size: int) -> list[Item]:
    """Repeat each prompt's item for its rows: row = prompt * group_size + completion."""
    return [item for item in prompts for _ in range(group_size)]


@dataclass(frozen=True)
class Trajectory:
    """Completions of the prompts of one step; rows are prompt-major: row = prompt * group_size + completion.

    Attributes:
        prompts: encoded questions of this rank.
        rollout: tokens, mask and the sampler's log-probabilities, on the policy's device.
        samples, answers: question and parsed answer of each row.
        rewards: reward terms of each row, on the host.
        old_logprobs: log pi_old of each token; ``None`` where the first update of the step is the only one.
        ref_logprobs: log pi_ref of each token; ``None`` without a KL penalty.
        advantages: one per row, or one per token (0 outside the mask).
    """

    prompts: list[EncodedPrompt]
    rollout: Rollout
    samples: list[VQASample]
    answers: list[Answer]
    rewards: RewardTable
    old_logprobs: PerToken | None = None
    ref_logprobs: PerToken | None = None
    advantages: Float[Tensor, " rows"] | PerToken | None = None

    @property
    def group_size(self) -> int:
        return len(self.samples) // len(self.prompts)

    @property
    def correct(self) -> Bool[Tensor, " rows"]:
        """Whether each row's answer is the gold one."""
        pairs = zip(self.answers, self.samples, strict=True)
        return torch.tensor([is_correct(answer, sample) for answer, sample in pairs])

    @property
    def has_reward_spread(self) -> Bool[Tensor, " prompts"]:
        """Whether the completions of a prompt have different rewards, over-long shaping aside."""
        terms = [values for name, values in self.rewards.terms.items() if name != OVERLONG]
        groups = [in_groups(values, self.group_size) for values in terms]
        return torch.stack([values.amax(1) > values.amin(1) for values in groups]).any(0)

    @property
    def row_advantages(self) -> Float[Tensor, " rows"]:
        """Advantage of each row, on the host: the mean over its tokens where there is one per token."""
        assert self.advantages is not None
        if self.advantages.dim() == 1:
            return self.advantages.cpu()
        return (self.advantages.sum(1) / self.rollout.mask.sum(1).clamp(min=1)).cpu()

    @property
    def is_active(self) -> Bool[Tensor, " prompts"]:
        """Whether a prompt's group has an advantage other than 0."""
        return self.row_advantages.view(len(self.prompts), -1).ne(0).any(1)

    @property
    def kl_k1(self) -> PerToken:
        """log pi_old - log pi_ref of each token, the KL estimate k1; 0 outside the mask."""
        assert self.old_logprobs is not None
        assert self.ref_logprobs is not None
        return torch.where(self.rollout.mask, self.old_logprobs - self.ref_logprobs, 0.0)

    def with_reward(self, name: str, values: Float[Tensor, " rows"], weight: float = 1.0) -> "Trajectory":
        return replace(self, rewards=self.rewards.with_term(name, values, weight))

    def rows_of(self, prompts: Sequence[int]) -> Int[Tensor, " rows"]:
        """Rows of some prompts, in this order."""
        return (torch.tensor(prompts)[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def select(self, prompts: Sequence[int]) -> "Trajectory":
        """Some prompts with all their rows, in this order."""
        rows = self.rows_of(prompts)
        return Trajectory(
            [self.prompts[prompt] for prompt in prompts],
            self.rollout.select(rows.to(self.rollout.tokens.device)),
            [self.samples[row] for row in rows.tolist()],
            [self.answers[row] for row in rows.tolist()],
            self.rewards.map(lambda values: values[rows]),
        )

    def concat(self, other: "Trajectory", pad_id: int) -> "Trajectory":
        """The prompts of both, those of ``other`` last."""
        mine, others = self.rewards.terms, other.rewards.terms
        terms = {name: torch.cat([mine[name], others[name]]) for name in mine}
        return Trajectory(
            self.prompts + other.prompts,
            self.rollout.concat(other.rollout, pad_id),
            self.samples + other.samples,
            self.answers + other.answers,
            replace(self.rewards, terms=terms),
        )

    def fill(self, other: "Trajectory", pad_id: int) -> "Trajectory":
        """Put groups of ``other`` with reward spread in the places of groups without, in their order."""
        places = (~self.has_reward_spread).nonzero().flatten().tolist()
        groups = other.has_reward_spread.nonzero().flatten().tolist()
        order = list(range(len(self.prompts)))
        for place, group in zip(places, groups, strict=False):
            order[place] = len(order) + group
        return self.concat(other, pad_id).select(order)

    def micro_batches(self, prompts: Sequence[int], size: int, pad_id: int) -> "list[MicroBatch]":
        """Cut some prompts into micro-batches of ``size`` prompts."""
        starts = range(0, len(prompts), size)
        return [MicroBatch.of(self, prompts[start : start + size], pad_id) for start in starts]

    def per_token(self, score: "Callable[[MicroBatch], PerToken]", size: int, pad_id: int) -> PerToken:
        """Values of all tokens, computed in micro-batches of ``size`` prompts; 0 behind their longest row."""
        length = self.rollout.tokens.shape[1]
        values = map(score, self.micro_batches(range(len(self.prompts)), size, pad_id))
        return torch.cat([F.pad(part, (0, length - part.shape[1])) for part in values])


@dataclass(frozen=True)
class MicroBatch:
    """Some prompts of a trajectory with all their completions: the input of one forward pass.

    Attributes:
        sampling_logprobs: log-probabilities that the sampler recorded.
        zero_advantage: all advantages are 0 and there is no KL term, so there is no gradient: the micro-batch
            is skipped, and counts in the loss's denominator.
    """

    prompts: PromptBatch
    tokens: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    sampling_logprobs: PerToken
    advantages: Float[Tensor, " rows"] | PerToken | None = None
    old_logprobs: PerToken | None = None
    ref_logprobs: PerToken | None = None
    zero_advantage: bool = False

    @classmethod
    def of(cls, trajectory: Trajectory, prompts: Sequence[int], pad_id: int) -> "MicroBatch":
        """Collate some prompts of a trajectory, trimmed to their longest completion."""
        rollout = trajectory.rollout
        device = rollout.tokens.device
        rows = trajectory.rows_of(prompts).to(device)
        length = int(rollout.lengths[rows].max())

        def trimmed(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows, :length] if values.dim() == 2 else values[rows]

        return cls(
            prompts=collate([trajectory.prompts[i] for i in prompts], pad_id, device),
            tokens=rollout.tokens[rows, :length],
            mask=rollout.mask[rows, :length],
            sampling_logprobs=rollout.logprobs[rows, :length],
            advantages=trimmed(trajectory.advantages),
            old_logprobs=trimmed(trajectory.old_logprobs),
            ref_logprobs=trimmed(trajectory.ref_logprobs),
        )
