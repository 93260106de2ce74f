"""The completions of one rollout during decoding."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.forward.decoding import DecodingLayout
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.draw import draw
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

_RECORDS = ("tokens", "logprobs", "kept_mass", "entropy")
_TENSORS = ("hidden", "active", "latest", "keys", "eos", "ended", *_RECORDS)


class DecodingState:
    """Records of all rows' tokens, and the hidden states of those rows that still decode.

    Keys of the prompts are padded to a multiple of ``prompt_multiple`` tokens.

    Attributes:
        active: indices of the rows that still decode, ``[active]``.
        hidden, latest: hidden state of each active row's latest token, ``[active, width]``; the token itself.
        tokens, logprobs, kept_mass, entropy: of all rows, ``[rows, max_tokens]``.
        ended: whether a row has generated an end of sequence, ``[rows]``.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        key: NoiseKey,
        prompt_multiple: int = 1,
    ) -> None:
        self.policy, self.sampling, device = policy, sampling, policy.device
        group_size, rows = sampling.group_size, len(prompts) * sampling.group_size
        prefix = policy.prefill(collate(prompts, policy.pad_id, device), prompt_multiple)
        self.decoding = DecodingLayout(prefix, group_size, sampling.max_tokens)
        self.hidden = prefix.hidden.repeat_interleave(group_size, dim=0)
        self.active = torch.arange(rows, device=device)
        self.latest = torch.full_like(self.active, policy.pad_id)
        self.keys = key.completion_keys([p.sample.id for p in prompts], group_size).to(device)
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.full((rows, sampling.max_tokens), policy.pad_id, device=device)
        self.logprobs = torch.zeros(rows, sampling.max_tokens, device=device)
        self.kept_mass = torch.ones_like(self.logprobs)
        self.entropy = torch.zeros_like(self.logprobs)

    def advance(self) -> None:
        """One step: run the latest tokens through the layers and sample the next ones."""
        self.hidden.copy_(self.policy.decode_step(self.latest, self.decoding))
        self.decoding.step += 1
        self.sample()

    def sample(self) -> None:
        """Sample a token for every active row from its hidden state."""
        active, position = self.active, self.decoding.step
        policy, keys = self.policy, self.keys[active]
        drawn = draw(self.hidden, policy.head_weight, policy.banned, self.sampling, keys, position)
        # A row that has ended gets padding until the next compaction.
        self.latest.copy_(torch.where(self.ended[active], policy.pad_id, drawn.tokens))
        self.tokens[active, position] = self.latest
        self.logprobs[active, position] = drawn.logprobs
        self.kept_mass[active, position] = drawn.kept_mass
        self.entropy[active, position] = drawn.entropy
        self.ended[active] |= torch.isin(self.latest, self.eos)

    def read_ended(self) -> Bool[Tensor, "prompts rows"]:
        """Which active rows have ended, on the host; waits for the device."""
        self.policy.counters["device_syncs"] += 1
        return self.ended[self.active].cpu().view(-1, self.decoding.group_size)

    def compact(self, ended: Bool[Tensor, "prompts rows"], in_powers: bool = False) -> None:
        """Drop prompts whose rows have all ended, and keep as many rows per prompt as the fullest has live.

        ``in_powers`` rounds prompts and rows up to powers of two, so that there are few shapes.
        """
        live = ~ended
        count, group_size = int(live.any(1).sum()), int(live.sum(1).max())
        if in_powers:
            count, group_size = (
                min(total, 1 << (n - 1).bit_length())
                for n, total in zip((count, group_size), ended.shape, strict=True)
            )
        if count * group_size == live.numel():
            return
        # Live ones first; ended ones fill up.
        prompts = ended.all(1).int().argsort(stable=True)[:count].sort().values
        order = ended[prompts].int().argsort(dim=1, stable=True)[:, :group_size].sort(dim=1).values
        rows = (prompts[:, None] * ended.shape[1] + order).flatten().to(self.active.device)
        self.decoding.select(prompts.to(self.active.device), rows)
        self.active, self.latest, self.hidden = self.active[rows], self.latest[rows], self.hidden[rows]

    def tensors(self) -> list[Tensor]:
        """All tensors that a step reads or writes, in a fixed order."""
        return [*self.decoding.tensors(), *(getattr(self, name) for name in _TENSORS)]

    def use_tensors(self, tensors: list[Tensor]) -> None:
        """Replace the tensors of :meth:`tensors` by others of equal content."""
        self.decoding.use_tensors(tensors[: -len(_TENSORS)])
        for name, tensor in zip(_TENSORS, tensors[-len(_TENSORS) :], strict=True):
            setattr(self, name, tensor)

    def records(self) -> list[Tensor]:
        """Copies of tokens, log-probabilities, kept mass and entropy, ``[rows, max_tokens]``."""
        return [getattr(self, name).clone() for name in _RECORDS]

    def shallow_copy(self) -> "DecodingState":
        """Another state of the same tensors: replacing them in one does not change the other."""
        other = copy.copy(self)
        other.decoding = copy.copy(self.decoding)
        return other
