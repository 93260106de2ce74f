"""What one step of training draws, and the micro-batches that it is cut into."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.algorithms.advantages import in_groups
from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import EncodedPrompt, PromptBatch, collate
from medvlm_r1.prompts import Answer, is_correct
from medvlm_r1.rewards import RewardTable
from medvlm_r1.rollout.engine import Rollout

OVERLONG = "overlong"  # the reward term of completions near their limit


@dataclass(frozen=True)
class Drawn:
    """The completions of a step's prompts, read and rewarded; rows are prompt-major."""

    prompts: list[EncodedPrompt]
    rollout: Rollout
    samples: list[VQASample]
    answers: list[Answer]
    table: RewardTable

    @property
    def group_size(self) -> int:
        """Completions of a prompt."""
        return len(self.samples) // len(self.prompts)

    @property
    def right(self) -> Bool[Tensor, " rows"]:
        """Whether each row's answer is the gold one."""
        pairs = zip(self.answers, self.samples, strict=True)
        return torch.tensor([is_correct(answer, sample) for answer, sample in pairs])

    @property
    def spread(self) -> Bool[Tensor, " prompts"]:
        """Whether a prompt's completions earned different rewards, their lengths aside."""
        terms = [values for name, values in self.table.terms.items() if name != OVERLONG]
        groups = [in_groups(values, self.group_size) for values in terms]
        return torch.stack([values.amax(1) > values.amin(1) for values in groups]).any(0)

    def rows_of(self, chosen: Sequence[int]) -> Int[Tensor, " rows"]:
        """All rows of some of the prompts, in this order."""
        return (torch.tensor(chosen)[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def groups(self, chosen: Sequence[int]) -> "Drawn":
        """Some of the prompts with all their rows, in this order."""
        rows = self.rows_of(chosen)
        return Drawn(
            [self.prompts[prompt] for prompt in chosen],
            self.rollout.select(rows.to(self.rollout.tokens.device)),
            [self.samples[row] for row in rows.tolist()],
            [self.answers[row] for row in rows.tolist()],
            self.table.map(lambda values: values[rows]),
        )

    def beside(self, other: "Drawn", pad_id: int) -> "Drawn":
        """Both, one below the other."""
        terms = {
            name: torch.cat([values, other.table.terms[name]]) for name, values in self.table.terms.items()
        }
        return Drawn(
            self.prompts + other.prompts,
            self.rollout.concat(other.rollout, pad_id),
            self.samples + other.samples,
            self.answers + other.answers,
            replace(self.table, terms=terms),
        )


@dataclass(frozen=True)
class MicroBatch:
    """Some prompts of a rollout with all their completions; what one forward pass holds.

    Attributes:
        advantages: one a row, or one a token.
        sampled: log-probabilities that the sampler recorded.
        silent: no advantage among them and no KL term, so there is no gradient: they only count.
    """

    prompts: PromptBatch
    tokens: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    advantages: Float[Tensor, " rows"] | Float[Tensor, "rows tokens"]
    sampled: Float[Tensor, "rows tokens"]
    silent: bool = False
    old_logprobs: Float[Tensor, "rows tokens"] | None = None
    ref_logprobs: Float[Tensor, "rows tokens"] | None = None

    @classmethod
    def of(
        cls, drawn: Drawn, advantages: Float[Tensor, " rows"], chosen: Sequence[int], pad_id: int
    ) -> "MicroBatch":
        """Some of the prompts, trimmed to their longest completion, where ``advantages`` lie."""
        device = advantages.device
        rows = drawn.rows_of(chosen).to(drawn.rollout.tokens.device)
        length = int(drawn.rollout.lengths[rows].max())
        return cls(
            prompts=collate([drawn.prompts[i] for i in chosen], pad_id, device),
            tokens=drawn.rollout.tokens[rows, :length],
            mask=drawn.rollout.mask[rows, :length],
            advantages=advantages[rows],
            sampled=drawn.rollout.logprobs[rows, :length],
        )

    @property
    def penalty(self) -> Float[Tensor, "rows tokens"]:
        """log pi_old - log pi_ref of each token, the estimate k1 of the KL; 0 outside the mask."""
        return torch.where(self.mask, self.old_logprobs - self.ref_logprobs, 0.0)
