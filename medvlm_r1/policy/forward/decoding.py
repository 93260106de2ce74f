"""Decoding all completions of a list of prompts, one token each a step, from one copy of each prompt."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.policy.forward.attention import AttentionLayout, shared_prefix_attention

Keys = Float[Tensor, "prompts kv_heads longest size"]


@dataclass(frozen=True)
class PromptCache:
    """What a pass over the prompts leaves behind.

    Attributes:
        layers: keys and values of each layer, padded on the right.
        filled: false where a prompt is padded.
        positions: of the token behind each prompt.
        hidden: of each prompt's last token.
    """

    layers: list[tuple[Keys, Keys]]
    filled: Bool[Tensor, "prompts longest"]
    positions: Int[Tensor, " prompts"]
    hidden: Float[Tensor, "prompts width"]

    def only(self, prompts: Int[Tensor, " kept"]) -> "PromptCache":
        """Some of the prompts."""
        return PromptCache(
            [(keys[prompts], values[prompts]) for keys, values in self.layers],
            self.filled[prompts],
            self.positions[prompts],
            self.hidden[prompts],
        )


class DecodingLayout(AttentionLayout):
    """One new token of each row attends to its prompt and to the row's earlier tokens.

    Shapes do not change from step to step and the step's number is a tensor, so a step can be compiled
    once and captured as a graph. Rows are prompt-major.

    Args:
        prefix: of the prompts.
        group_size: rows per prompt.
        tokens: the most that a row may decode.
    """

    def __init__(self, prefix: PromptCache, group_size: int, tokens: int) -> None:
        self.prefix, self.group_size = prefix, group_size
        keys = prefix.layers[0][0]
        prompts, heads, _, size = keys.shape
        # [layer, keys or values, row, head, token, size]: some rows, or the first tokens, are a view
        self._own = keys.new_zeros(len(prefix.layers), 2, prompts * group_size, heads, tokens, size)
        self.step = torch.zeros(1, dtype=torch.long, device=keys.device)
        self.set_window(tokens)

    def set_window(self, tokens: int) -> None:
        """Attend to the first ``tokens`` own tokens; those that are still to come are masked."""
        self._window = torch.arange(min(tokens, self._own.shape[4]), device=self._own.device)

    @property
    def positions(self) -> Int[Tensor, "3 rows"]:
        """Of the tokens that this step feeds."""
        return (self.prefix.positions.repeat_interleave(self.group_size) + self.step).expand(3, -1)

    def attend(self, layer, query, key, value, scaling):
        keys, values = self._own[layer]
        for kept, new in ((keys, key), (values, value)):
            kept.index_copy_(2, self.step, new[0].transpose(0, 1).unsqueeze(2))
        prompts, heads, rows = len(self.prefix.filled), keys.shape[1], len(keys)
        shape = (prompts, self.group_size, heads)
        seen = shared_prefix_attention(
            query[0].transpose(0, 1).reshape(*shape, -1, query.shape[-1]),
            self.prefix.layers[layer],
            tuple(x[:, :, : self.window].unflatten(0, shape[:2]) for x in (keys, values)),
            self.prefix.filled,
            (self._window <= self.step).unsqueeze(0),
            scaling,
        )
        return seen.reshape(rows, -1, query.shape[-1])

    def tensors(self) -> list[Tensor]:
        """All that a step reads or writes, in a fixed order."""
        kept = [x for layer in self.prefix.layers for x in layer]
        return [*kept, self.prefix.filled, self.prefix.positions, self._own, self.step]

    def use_tensors(self, tensors: list[Tensor]) -> None:
        """Go on in these tensors, which hold the same as :meth:`tensors`."""
        *kept, filled, positions, self._own, self.step = tensors
        layers = list(zip(kept[::2], kept[1::2], strict=True))
        self.prefix = replace(self.prefix, layers=layers, filled=filled, positions=positions)

    @property
    def window(self) -> int:
        """Own tokens that are attended to, those to come included."""
        return len(self._window)

    def keep(self, prompts: Int[Tensor, " kept"], rows: Int[Tensor, " rows"]) -> None:
        """Go on with some prompts and, of each, the same number of rows."""
        self.group_size = len(rows) // len(prompts)
        if len(prompts) < len(self.prefix.filled):
            self.prefix = self.prefix.only(prompts)
        self._own = self._own[:, :, rows]
