"""The fast engine: every prompt is read once, and its whole group decodes from that one reading.

A step draws a token for every row from the scores of the step before, and feeds it back. Shapes stay the
same from step to step, and nothing of it is read by the host; only every few steps the host looks which
rows have ended, and goes on with a smaller batch, or stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from medvlm_r1.policy.decoding import Decoding
from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.draws import DrawKey, choice_scores
from medvlm_r1.rollout.engine import Rollout, Sampling, finished_rollout

WINDOW = 32  # own tokens are attended to in blocks of so many: what is still to come costs little


@dataclass(frozen=True)
class SharedPrefixEngine:
    """Rollouts from one copy of each prompt.

    Args:
        look_every: steps between two looks at which rows have ended.
        compact: go on without rows that have ended; what is drawn does not depend on it.
    """

    look_every: int = 16
    compact: bool = True

    def __post_init__(self) -> None:
        if self.look_every < 1:
            raise ValueError(f"rollout.look_every is {self.look_every}: it must be at least 1")

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: DrawKey
    ) -> Rollout:
        """Draw completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`."""
        with policy.sampling():
            rows = _Rows(policy, prompts, sampling, key)
            rows.draw()
            for done in range(1, sampling.max_tokens):
                if done % self.look_every == 0:
                    ended = rows.look()
                    if ended.all():
                        break
                    if self.compact:
                        rows.compact(ended)
                rows.decoding.look_at(-(-done // WINDOW) * WINDOW)
                rows.feed()
                rows.draw()
        return finished_rollout(policy, rows.tokens, rows.logprobs, rows.kept_mass)


class _Rows:
    """Completions as they grow.

    What is drawn lies in tensors of all rows; ``at`` says which of them are still decoded.
    """

    def __init__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: DrawKey
    ) -> None:
        self.policy, self.sampling, device = policy, sampling, policy.device
        group_size, count = sampling.group_size, len(prompts) * sampling.group_size
        prefix = policy.prefill(collate(prompts, policy.pad_id, device))
        self.decoding = Decoding(prefix, group_size, sampling.max_tokens)
        self.hidden = prefix.hidden.repeat_interleave(group_size, dim=0)
        self.at = torch.arange(count, device=device)
        self.keys = key.rows([p.sample.id for p in prompts], group_size).to(device)
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.tokens = torch.full((count, sampling.max_tokens), policy.pad_id, device=device)
        self.logprobs = torch.zeros(count, sampling.max_tokens, device=device)
        self.kept_mass = torch.ones(count, sampling.max_tokens, device=device)

    def draw(self) -> None:
        """A token for every row, from the hidden state of its latest one."""
        at, position = self.at, self.decoding.step
        logprobs = self.policy.scores(self.hidden, self.sampling.divisor)
        scores, kept = choice_scores(logprobs, self.sampling, self.keys[at], position)
        drawn = scores.argmax(-1)
        # A row that has ended stays in the batch until the next look, and draws padding.
        self.drawn = torch.where(self.ended[at], self.policy.pad_id, drawn)
        self.tokens[at, position] = self.drawn
        self.logprobs[at, position] = logprobs.gather(-1, drawn[:, None])[:, 0]
        self.kept_mass[at, position] = kept
        self.ended[at] |= torch.isin(self.drawn, self.eos)

    def feed(self) -> None:
        """The drawn tokens through the layers."""
        self.hidden = self.policy.decode(self.drawn, self.decoding)
        self.decoding.step += 1

    def look(self) -> Bool[Tensor, "prompts rows"]:
        """Which of the rows have ended; waits for the device."""
        self.policy.counters["host_reads"] += 1
        return self.ended[self.at].cpu().view(-1, self.decoding.group_size)

    def compact(self, ended: Bool[Tensor, "prompts rows"]) -> None:
        """Drop prompts whose rows have all ended, and of the others as many rows as have in each."""
        live = ~ended
        prompts = live.any(1).nonzero()[:, 0]
        group_size = int(live.sum(1).max())
        if len(prompts) * group_size == live.numel():
            return
        # Live rows first; some that have ended fill up groups with fewer.
        order = ended[prompts].int().argsort(dim=1, stable=True)[:, :group_size]
        rows = (prompts[:, None] * ended.shape[1] + order.sort(dim=1).values).flatten().to(self.at.device)
        self.decoding.keep(prompts.to(self.at.device), rows)
        self.at, self.drawn = self.at[rows], self.drawn[rows]
