"""The completions of one rollout while they are decoded."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.forward.decoding import DecodingLayout
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey, gumbel_max_scores


class DecodingState:
    """Completions as they grow.

    What is drawn lies in tensors of all rows; ``at`` says which of them are still decoded.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        key: NoiseKey,
        prompt_block: int = 1,
    ) -> None:
        self.policy, self.sampling, device = policy, sampling, policy.device
        group_size, count = sampling.group_size, len(prompts) * sampling.group_size
        prefix = policy.prefill(collate(prompts, policy.pad_id, device), prompt_block)
        self.decoding = DecodingLayout(prefix, group_size, sampling.max_tokens)
        self.hidden = prefix.hidden.repeat_interleave(group_size, dim=0)
        self.at = torch.arange(count, device=device)
        self.drawn = torch.full_like(self.at, policy.pad_id)
        self.keys = key.completion_keys([p.sample.id for p in prompts], group_size).to(device)
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.tokens = torch.full((count, sampling.max_tokens), policy.pad_id, device=device)
        self.logprobs = torch.zeros(count, sampling.max_tokens, device=device)
        self.kept_mass = torch.ones(count, sampling.max_tokens, device=device)

    def advance(self) -> None:
        """One step: the latest tokens go through the layers, and the next ones are drawn."""
        self.hidden.copy_(self.policy.decode_step(self.drawn, self.decoding))
        self.decoding.step += 1
        self.draw()

    def draw(self) -> None:
        """A token for every row, from the hidden state of its latest one."""
        at, position = self.at, self.decoding.step
        logprobs = self.policy.next_token_logprobs(self.hidden, self.sampling.divisor)
        scores, kept = gumbel_max_scores(logprobs, self.sampling, self.keys[at], position)
        drawn = scores.argmax(-1)
        # A row that has ended stays in the batch until the next look, and draws padding.
        self.drawn.copy_(torch.where(self.ended[at], self.policy.pad_id, drawn))
        self.tokens[at, position] = self.drawn
        self.logprobs[at, position] = logprobs.gather(-1, drawn[:, None])[:, 0]
        self.kept_mass[at, position] = kept
        self.ended[at] |= torch.isin(self.drawn, self.eos)

    def read_ended(self) -> Bool[Tensor, "prompts rows"]:
        """Which of the rows have ended; waits for the device."""
        self.policy.counters["device_syncs"] += 1
        return self.ended[self.at].cpu().view(-1, self.decoding.group_size)

    def compact(self, ended: Bool[Tensor, "prompts rows"], in_powers: bool = False) -> None:
        """Drop prompts whose rows have all ended, and of the others as many rows as have in each.

        Args:
            in_powers: keep powers of two, so that there are few shapes.
        """
        live = ~ended
        count, group_size = int(live.any(1).sum()), int(live.sum(1).max())
        if in_powers:
            count, group_size = (
                min(whole, 1 << (n - 1).bit_length())
                for n, whole in zip((count, group_size), ended.shape, strict=True)
            )
        if count * group_size == live.numel():
            return
        # What is live first; what has ended fills up.
        prompts = ended.all(1).int().argsort(stable=True)[:count].sort().values
        order = ended[prompts].int().argsort(dim=1, stable=True)[:, :group_size].sort(dim=1).values
        rows = (prompts[:, None] * ended.shape[1] + order).flatten().to(self.at.device)
        self.decoding.keep(prompts.to(self.at.device), rows)
        self.at, self.drawn, self.hidden = self.at[rows], self.drawn[rows], self.hidden[rows]

    def tensors(self) -> list[Tensor]:
        """All that a step reads or writes, in a fixed order."""
        return [*self.decoding.tensors(), *(getattr(self, name) for name in _STATE)]

    def use_tensors(self, tensors: list[Tensor]) -> None:
        """Go on in these tensors, which hold the same as :meth:`tensors`."""
        self.decoding.use_tensors(tensors[: -len(_STATE)])
        for name, tensor in zip(_STATE, tensors[-len(_STATE) :], strict=True):
            setattr(self, name, tensor)

    def shallow_copy(self) -> "DecodingState":
        """The same tensors under names of its own."""
        other = copy.copy(self)
        other.decoding = copy.copy(self.decoding)
        return other


_STATE = ("hidden", "at", "drawn", "keys", "eos", "ended", "tokens", "logprobs", "kept_mass")
