"""Continuous batching: prompts wait for the slots of those whose completions have ended."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.rollout.decoding_state import DecodingState

PREFILL = 16  # prompts in one pass, which bounds its memory
HALVINGS = 3  # of the rows that decode: shapes for which a step is captured


class Schedule:
    """Which completions the rows of a :class:`DecodingState` hold, and the tokens of those that have ended.

    Args:
        prompts, keys: of all completions, prompt-major; there may be more than the state has slots for.
        exact: drop as many rows as have ended; else halve them, at most :data:`HALVINGS` times, so that there
            are few shapes. ``None`` never drops a row.

    Attributes:
        tokens: of all completions, ``[completions, max_tokens]``.
        records: as the state's, ``[3, completions, max_tokens]``.
    """

    def __init__(
        self,
        state: DecodingState,
        prompts: Sequence[EncodedPrompt],
        keys: Int[Tensor, " completions"],
        exact: bool | None,
    ) -> None:
        state.reset()
        self.state, self.prompts, self.keys, self.exact = state, prompts, keys.view(len(prompts), -1), exact
        self.tokens = state.tokens.new_full((len(keys), state.shape.max_tokens), state.policy.pad_id)
        self.records = state.records.new_zeros(3, *self.tokens.shape)
        self._waiting = list(range(len(prompts)))[::-1]
        self._completions = torch.full((state.prompts, state.group_size), -1)  # of each row; -1 for none
        self._taken = torch.zeros(state.prompts, dtype=torch.long)  # tokens of each slot's rows

    def next_steps(self, most: int) -> range:
        """Save the rows that have ended, fill or drop their slots, and plan the next steps.

        Returns:
            The number of tokens that the longest row has before each step, for at most ``most`` steps; empty
            once all completions have ended.
        """
        limit = self.state.shape.max_tokens
        while True:
            self._save_ended()
            admitted = self._admit()
            live = self._completions >= 0
            if not live.any():
                return range(0)
            if self.exact is not None and not self._waiting:
                self._drop(live)
            taken = self._taken[(self._completions >= 0).any(1)]
            # Rows that were just admitted have sampled a token already.
            steps = min(most - admitted, limit - int(taken.min()))
            if steps:
                self._taken += steps
                longest = min(int(taken.max()), limit - 1)
                return range(longest, longest + steps)

    def _save_ended(self) -> None:
        held = self._completions >= 0
        if not held.any():
            return
        done = (self.state.read_ended().view_as(held) & held).flatten().nonzero().flatten()
        into, rows = (x.to(self.tokens.device) for x in (self._completions.flatten()[done], done))
        self.tokens[into] = self.state.tokens[rows, :-1]
        self.records[:, into] = self.state.records[:, rows, :-1]
        self._completions.view(-1)[done] = -1

    def _admit(self) -> bool:
        """Read waiting prompts into empty slots."""
        empty = (self._completions < 0).all(1).nonzero().flatten().tolist()
        chosen = [self._waiting.pop() for _ in empty[: len(self._waiting)]]
        for start in range(0, len(chosen), PREFILL):
            prompts = chosen[start : start + PREFILL]
            slots = empty[start : start + len(prompts)]
            self.state.admit(slots, [self.prompts[i] for i in prompts], self.keys[prompts].flatten())
            group = torch.arange(self.keys.shape[1])
            self._completions[slots] = torch.tensor(prompts)[:, None] * len(group) + group
            self._taken[slots] = 1
        return bool(chosen)

    def _drop(self, live: Bool[Tensor, "prompts group"]) -> None:
        """Keep the prompts with live rows, and as many rows per prompt as the fullest has live."""
        needed = int(live.any(1).sum()), int(live.sum(1).max())
        count, group_size = needed if self.exact else self._smallest(*needed)
        if count * group_size == live.numel():
            return
        # Live ones first; ended ones fill up.
        prompts = (~live).all(1).int().argsort(stable=True)[:count].sort().values
        order = (~live)[prompts].int().argsort(dim=1, stable=True)[:, :group_size].sort(dim=1).values
        rows = prompts[:, None] * live.shape[1] + order
        self.state.move_to_front(prompts, rows.flatten())
        self._completions, self._taken = self._completions.flatten()[rows], self._taken[prompts]

    def _smallest(self, needed_prompts: int, needed_rows: int) -> tuple[int, int]:
        """The smallest shape, halved from the full one in turns, that has room for this many."""
        state = self.state
        shape = state.prompts, state.group_size
        prompts, group_size = state.shape.prompts, state.shape.group_size
        for halving in range(HALVINGS):
            if group_size > 1 and (halving % 2 == 0 or prompts == 1):
                group_size = -(-group_size // 2)
            else:
                prompts = -(-prompts // 2)
            if needed_prompts <= prompts <= shape[0] and needed_rows <= group_size <= shape[1]:
                shape = prompts, group_size
        return shape
