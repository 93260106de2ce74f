"""The interface of rollout engines: :class:`Sampling` in, :class:`Rollout` out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.sampling_noise import NoiseKey


@dataclass(frozen=True)
class Sampling:
    """Parameters of the sampler.

    Attributes:
        group_size: completions per prompt, G.
        max_tokens: limit of a completion, end of sequence included.
        temperature: divisor of the logits; 0 is greedy decoding.
        top_p: sample among the likeliest tokens whose mass reaches this share; 1 for all.
        top_k: sample among this number of likeliest tokens; 0 for all.

    Raises:
        ValueError: a value is out of range.
    """

    group_size: int = 1
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.max_tokens < 1:
            raise ValueError(
                f"group_size {self.group_size} and max_tokens {self.max_tokens} must be at least 1"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature {self.temperature} must be >= 0, top_p {self.top_p} in (0, 1] and "
                f"top_k {self.top_k} >= 0"
            )

    @property
    def divisor(self) -> float:
        """Divisor of the logits in recorded log-probabilities: the temperature, or 1 for greedy decoding."""
        return self.temperature or 1.0


@dataclass(frozen=True)
class Rollout:
    """Completions of a list of prompts; rows are prompt-major.

    Attributes:
        tokens: completion tokens, padded after the end of sequence.
        mask: true up to and including the end of sequence.
        logprobs: log-probability of each token when it was sampled: logits divided by the temperature (by 1
            for greedy decoding), not truncated, vision tokens masked, softmax in fp32.
        kept_mass: probability mass inside top-k and top-p, per token; 1 without truncation.
        texts: decoded completions.
        truncated: whether a row reached the limit without an end of sequence.
    """

    tokens: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    logprobs: Float[Tensor, "rows tokens"]
    kept_mass: Float[Tensor, "rows tokens"]
    texts: list[str]
    truncated: Bool[Tensor, " rows"]

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens per completion, end of sequence included."""
        return self.mask.sum(1)

    def select(self, indices: Int[Tensor, " selected"]) -> "Rollout":
        """Some of the rows, in this order."""
        return Rollout(
            tokens=self.tokens[indices],
            mask=self.mask[indices],
            logprobs=self.logprobs[indices],
            kept_mass=self.kept_mass[indices],
            texts=[self.texts[row] for row in indices.tolist()],
            truncated=self.truncated[indices],
        )

    def concat(self, other: "Rollout", pad_id: int) -> "Rollout":
        """The rows of this rollout, then those of the other, padded to the longer completion."""
        longest = max(self.tokens.shape[1], other.tokens.shape[1])

        def concat(name: str, fill: float) -> Tensor:
            parts = [getattr(rollout, name) for rollout in (self, other)]
            return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts])

        return Rollout(
            tokens=concat("tokens", pad_id),
            mask=concat("mask", False),
            logprobs=concat("logprobs", 0.0),
            kept_mass=concat("kept_mass", 1.0),
            texts=self.texts + other.texts,
            truncated=torch.cat([self.truncated, other.truncated]),
        )


@runtime_checkable
class Completions(Protocol):
    """The part of a :class:`Rollout` that evaluation needs, and that an endpoint has too."""

    @property
    def texts(self) -> list[str]: ...
    @property
    def lengths(self) -> Int[Tensor, " rows"]: ...
    @property
    def truncated(self) -> Bool[Tensor, " rows"]: ...


@runtime_checkable
class RolloutEngine(Protocol):
    """Samples ``sampling.group_size`` completions for each prompt.

    Training needs a :class:`Rollout`; :class:`Completions` are enough for an evaluation.
    """

    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout: ...


def completion_mask(
    tokens: Int[Tensor, "rows tokens"], eos_ids: Sequence[int]
) -> Bool[Tensor, "rows tokens"]:
    """True up to and including each row's first end-of-sequence token."""
    ended = torch.isin(tokens, torch.tensor(eos_ids, device=tokens.device))
    return ended.cumsum(1) - ended.long() == 0


def build_rollout(
    policy: Policy,
    tokens: Int[Tensor, "rows tokens"],
    logprobs: Float[Tensor, "rows tokens"],
    kept_mass: Float[Tensor, "rows tokens"],
) -> Rollout:
    """Cut to the longest completion and decode the texts.

    Args:
        tokens, logprobs, kept_mass: with any padding after the end of sequence.
    """
    mask = completion_mask(tokens, policy.eos_ids)
    longest = int(mask.sum(1).max())
    tokens, mask = tokens[:, :longest], mask[:, :longest]
    return Rollout(
        tokens=tokens,
        mask=mask,
        logprobs=logprobs[:, :longest],
        kept_mass=kept_mass[:, :longest],
        texts=[policy.encoder.decode(row[m]) for row, m in zip(tokens, mask, strict=True)],
        truncated=~torch.isin(tokens, torch.tensor(policy.eos_ids, device=tokens.device)).any(1),
    )
