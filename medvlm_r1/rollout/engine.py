"""The interface of rollout engines: :class:`Sampling` in, :class:`Rollout` out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Logprobs, Mask, Policy, Tokens
from medvlm_r1.rollout.sampling_noise import NoiseKey, Sampling


@dataclass(frozen=True)
class Rollout:
    """Completions of a list of prompts; rows are prompt-major.

    Attributes:
        tokens: completion tokens, padded after the end of sequence.
        mask: true up to and including the end of sequence.
        logprobs: log-probability of each token when it was sampled: logits divided by the temperature (by 1
            for greedy decoding), not truncated, vision tokens masked, softmax in fp32.
        kept_mass: probability mass inside top-k and top-p, per token; 1 without truncation.
        entropy: of the distribution of ``logprobs``, in nats, per token; 0 for greedy decoding.
        texts: decoded completions.
        truncated: whether a row reached the limit without an end of sequence.
    """

    tokens: Tokens
    mask: Mask
    logprobs: Logprobs
    kept_mass: Logprobs
    entropy: Logprobs
    texts: list[str]
    truncated: Bool[Tensor, " rows"]

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens per completion, end of sequence included."""
        return self.mask.sum(1)

    def select(self, indices: Int[Tensor, " selected"]) -> "Rollout":
        """Some of the rows, in this order."""
        names = ("tokens", "mask", "logprobs", "kept_mass", "entropy", "truncated")
        tensors = {name: getattr(self, name)[indices] for name in names}
        return Rollout(**tensors, texts=[self.texts[row] for row in indices.tolist()])

    def concat(self, other: "Rollout", pad_id: int) -> "Rollout":
        """The rows of this rollout, then those of the other, padded to the longer completion."""
        longest = max(self.tokens.shape[1], other.tokens.shape[1])

        def concat(name: str, fill: float) -> Tensor:
            parts = [getattr(rollout, name) for rollout in (self, other)]
            return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts])

        fills = {"tokens": pad_id, "mask": False, "logprobs": 0.0, "kept_mass": 1.0, "entropy": 0.0}
        tensors = {name: concat(name, fill) for name, fill in fills.items()}
        truncated = torch.cat([self.truncated, other.truncated])
        return Rollout(**tensors, texts=self.texts + other.texts, truncated=truncated)


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


@runtime_checkable
class RemoteEngine(Protocol):
    """An engine whose server has its own copy of the weights, and draws with noise of its own."""

    def update_weights(self, policy: Policy) -> None:
        """Give the server the weights to sample from. A collective: every rank must call it."""

    def release(self) -> None:
        """Free the memory of the policy's device until the next rollout."""

    def stop(self) -> None:
        """End the server, if the engine has started it."""


def sync_weights(engine: RolloutEngine, policy: Policy) -> None:
    """Make the policy's present weights those that ``engine`` samples from. A collective."""
    policy.sync_sampling_model()
    if isinstance(engine, RemoteEngine):
        engine.update_weights(policy)


def release_memory(engine: RolloutEngine) -> None:
    """Free the memory that a remote engine holds on the policy's device."""
    if isinstance(engine, RemoteEngine):
        engine.release()


@contextmanager
def stopped_after(engine: RolloutEngine) -> Iterator[None]:
    """End a remote engine's server after the block."""
    try:
        yield
    finally:
        if isinstance(engine, RemoteEngine):
            engine.stop()


def completion_mask(tokens: Tokens, eos_ids: Sequence[int]) -> Mask:
    """True up to and including each row's first end-of-sequence token."""
    ended = torch.isin(tokens, torch.tensor(eos_ids, device=tokens.device))
    return ended.cumsum(1) - ended.long() == 0


def build_rollout(
    policy: Policy, tokens: Tokens, logprobs: Logprobs, kept_mass: Logprobs, entropy: Logprobs
) -> Rollout:
    """Cut to the longest completion, with any padding after the end of sequence, and decode the texts."""
    mask = completion_mask(tokens, policy.eos_ids)
    longest = int(mask.sum(1).max())
    tensors = (tokens, mask, logprobs, kept_mass, entropy)
    tokens, mask, logprobs, kept_mass, entropy = (x[:, :longest] for x in tensors)
    texts = [policy.encoder.decode(row[m]) for row, m in zip(tokens, mask, strict=True)]
    truncated = ~torch.isin(tokens, torch.tensor(policy.eos_ids, device=tokens.device)).any(1)
    return Rollout(tokens, mask, logprobs, kept_mass, entropy, texts, truncated)
