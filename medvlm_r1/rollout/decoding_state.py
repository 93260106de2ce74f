"""The rows of one rollout that decode together."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.forward.decoding import CacheShape, DecodingLayout, KVCache
from medvlm_r1.policy.forward.model import inner_model
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.draw import Draw, draw
from medvlm_r1.rollout.engine import Sampling

Rows = Int[Tensor, " rows"]


class DecodingState:
    """Rows that decode together; a row is one completion, and rows are prompt-major.

    The first ``prompts * group_size`` rows decode, each at its own position. All tensors stay where they are:
    prompts are admitted to slots whose completions have ended, and rows are moved in place. So a step can be
    captured once per shape and replayed in every rollout.

    Args:
        shape: the most prompts and tokens.
        memory: of the :class:`KVCache`.

    Attributes:
        prompts, group_size: shape of the rows that decode now.
        window: tokens per row that attention reads.
        latest, hidden: each row's latest token, and the hidden state that it was sampled from.
        steps: position of the latest token in its completion.
        ended: whether a row has reached an end of sequence or the limit.
        tokens: completions, ``[rows, max_tokens + 1]``; rows that have ended write to the last column.
        records: log-probability, kept mass and entropy of each token, ``[3, rows, max_tokens + 1]``.
    """

    def __init__(
        self, policy: Policy, sampling: Sampling, shape: CacheShape, memory: Tensor | None = None
    ) -> None:
        self.policy, self.sampling, self.shape, device = policy, sampling, shape, policy.device
        model = policy.sampling_model
        self.cache = KVCache(model.config, shape, model.dtype, device, memory)
        rows, width = shape.rows, inner_model(model).language_model.config.hidden_size
        self.index = torch.arange(rows, device=device)
        self.keys, self.steps = torch.zeros_like(self.index), torch.zeros_like(self.index)
        self.latest = torch.full_like(self.index, policy.pad_id)
        self.hidden = torch.zeros(rows, width, dtype=model.dtype, device=device)
        self.ended = torch.ones(rows, dtype=torch.bool, device=device)
        self.tokens = torch.full((rows, shape.max_tokens + 1), policy.pad_id, device=device)
        self.records = torch.zeros(3, rows, shape.max_tokens + 1, device=device)
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.reset()

    def reset(self) -> None:
        """Empty all slots."""
        self.prompts, self.group_size, self.window = self.shape.prompts, self.shape.group_size, 1
        self.ended.fill_(True)
        self.steps.zero_()

    @property
    def rows(self) -> int:
        """Number of rows that decode."""
        return self.prompts * self.group_size

    def admit(self, slots: Sequence[int], prompts: Sequence[EncodedPrompt], keys: Rows) -> None:
        """Read prompts into slots, and sample the first token of their rows; ``keys`` are the noise keys."""
        device = self.index.device
        filled = self.policy.prefill(collate(prompts, self.policy.pad_id, device))
        into = torch.tensor(slots, device=device)
        self.cache.store(into, filled)
        rows = (into[:, None] * self.group_size + self.index[: self.group_size]).flatten()
        self.keys[rows] = keys.to(device)
        self.ended[rows] = False
        self.tokens[rows] = self.policy.pad_id
        self.records[:, rows] = torch.tensor([0.0, 1.0, 0.0], device=device)[:, None, None]
        self._sample(rows, filled.hidden.repeat_interleave(self.group_size, dim=0), torch.zeros_like(rows))

    def advance(self) -> None:
        """One step: run the latest tokens through the layers and sample the next ones."""
        layout = DecodingLayout(self.cache, self.steps[: self.rows], self.prompts, self.window)
        hidden = self.policy.decode_step(self.latest[: self.rows], layout)
        self._sample(slice(self.rows), hidden, self.next_steps())

    def next_steps(self) -> Rows:
        """Positions of the next tokens of the rows that decode."""
        return (self.steps[: self.rows] + 1).clamp(max=self.shape.max_tokens - 1)

    def _sample(self, rows: slice | Rows, hidden: Float[Tensor, "rows width"], steps: Rows) -> None:
        policy = self.policy
        drawn = draw(hidden, policy.head_weight, policy.banned, self.sampling, self.keys[rows], steps)
        self.record(rows, hidden, steps, drawn)

    def record(
        self, rows: slice | Rows, hidden: Float[Tensor, "rows width"], steps: Rows, drawn: Draw
    ) -> None:
        """Record the tokens at positions ``steps``, drawn from ``hidden``."""
        limit, ended, index = self.shape.max_tokens, self.ended[rows], self.index[rows]
        latest = torch.where(ended, self.policy.pad_id, drawn.tokens)
        column = torch.where(ended, limit, steps)
        self.hidden[rows], self.latest[rows], self.steps[rows] = hidden, latest, steps
        self.tokens[index, column] = latest
        self.records[:, index, column] = torch.stack([drawn.logprobs, drawn.kept_mass, drawn.entropy])
        self.ended[rows] = ended | torch.isin(latest, self.eos) | (steps == limit - 1)

    def read_ended(self) -> Bool[Tensor, " rows"]:
        """Which rows have ended, on the host; waits for the device."""
        self.policy.counters["device_syncs"] += 1
        return self.ended[: self.rows].cpu()

    def move_to_front(self, prompts: Int[Tensor, " kept"], rows: Int[Tensor, " kept_rows"]) -> None:
        """Decode only these prompts and rows from now on, with equally many rows per prompt."""
        prompts, rows = prompts.to(self.index.device), rows.to(self.index.device)
        self.cache.move_to_front(prompts, rows)
        for tensor in (self.keys, self.steps, self.latest, self.ended, self.tokens, *self.records):
            tensor[: len(rows)] = tensor[rows]
        self.prompts, self.group_size = len(prompts), len(rows) // len(prompts)

    def snapshot(self) -> list[Tensor]:
        """Copies of all tensors that a step changes, except keys and values."""
        return [tensor.clone() for tensor in self._changed()]

    def restore(self, snapshot: list[Tensor]) -> None:
        """Undo steps; the keys and values that they wrote are written again."""
        for tensor, value in zip(self._changed(), snapshot, strict=True):
            tensor.copy_(value)

    def _changed(self) -> list[Tensor]:
        return [self.steps, self.latest, self.hidden, self.ended, self.tokens, self.records]

    def keys_and_values(self, steps: Rows) -> Float[Tensor, "rows layers 2 heads size"]:
        """Copies of the rows' keys and values at these positions."""
        return self.cache.suffix[:, :, self.index[: self.rows], :, steps]

    def clear_keys_and_values(self, steps: Rows) -> None:
        """Make them not a number: a step that does not write them becomes not a number too."""
        self.cache.suffix[:, :, self.index[: self.rows], :, steps] = torch.nan
