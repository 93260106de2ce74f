"""Decode all completions of several prompts, one token per step, from one copy of each prompt's keys."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvlm_r1.policy.forward.attention import AttentionLayout, shared_prefix_attention
from medvlm_r1.policy.forward.packing import Keys


@dataclass(frozen=True)
class PromptCache:
    """Result of a pass over prompts.

    Attributes:
        layers: keys and values of each layer, padded on the right where ``mask`` is false.
        positions: rotary position of the token after each prompt, on all three axes.
        hidden: last hidden state of each prompt.
    """

    layers: list[tuple[Keys, Keys]]
    mask: Bool[Tensor, "prompts longest"]
    positions: Int[Tensor, " prompts"]
    hidden: Float[Tensor, "prompts width"]

    def select(self, prompts: Int[Tensor, " selected"]) -> "PromptCache":
        """Some of the prompts."""
        layers = [(keys[prompts], values[prompts]) for keys, values in self.layers]
        return PromptCache(layers, *(x[prompts] for x in (self.mask, self.positions, self.hidden)))


class DecodingLayout(AttentionLayout):
    """One new token of each row attends to its prompt and to the row's earlier tokens.

    Shapes are the same in every step and the step number is a tensor, so a step can be compiled once and
    captured as a CUDA graph. Rows are prompt-major, ``group_size`` per prompt, of at most ``max_tokens``.
    """

    def __init__(self, prefix: PromptCache, group_size: int, max_tokens: int) -> None:
        self.prefix, self.group_size = prefix, group_size
        keys = prefix.layers[0][0]
        prompts, heads, _, size = keys.shape
        # [layer, keys or values, row, head, token, size]: indexing rows or the first tokens gives a view
        self._suffix = keys.new_zeros(len(prefix.layers), 2, prompts * group_size, heads, max_tokens, size)
        self.step = torch.zeros(1, dtype=torch.long, device=keys.device)
        self.set_window(max_tokens)

    def set_window(self, tokens: int) -> None:
        """Attend to the first ``tokens`` tokens of each row; tokens after the present step are masked."""
        self._window = torch.arange(min(tokens, self._suffix.shape[4]), device=self._suffix.device)

    @property
    def window(self) -> int:
        """Tokens per row in the attention, masked ones included."""
        return len(self._window)

    @property
    def positions(self) -> Int[Tensor, "3 rows"]:
        """Rotary positions of this step's tokens."""
        return (self.prefix.positions.repeat_interleave(self.group_size) + self.step).expand(3, -1)

    def attend(self, layer, query, key, value, scaling):
        keys, values = self._suffix[layer]
        for stored, new in ((keys, key), (values, value)):
            stored.index_copy_(2, self.step, new[0].transpose(0, 1).unsqueeze(2))
        prompts, heads, rows = len(self.prefix.mask), keys.shape[1], len(keys)
        shape = (prompts, self.group_size, heads)
        output = shared_prefix_attention(
            query[0].transpose(0, 1).reshape(*shape, -1, query.shape[-1]),
            self.prefix.layers[layer],
            tuple(x[:, :, : self.window].unflatten(0, shape[:2]) for x in (keys, values)),
            self.prefix.mask,
            (self._window <= self.step).unsqueeze(0),
            scaling,
        )
        return output.reshape(rows, -1, query.shape[-1])

    def tensors(self) -> list[Tensor]:
        """All tensors that a step reads or writes, in a fixed order."""
        keys_and_values = [x for layer in self.prefix.layers for x in layer]
        return [*keys_and_values, self.prefix.mask, self.prefix.positions, self._suffix, self.step]

    def use_tensors(self, tensors: list[Tensor]) -> None:
        """Replace the tensors of :meth:`tensors` by others of equal content."""
        *keys_and_values, mask, positions, self._suffix, self.step = tensors
        layers = list(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))
        self.prefix = replace(self.prefix, layers=layers, mask=mask, positions=positions)

    def select(self, prompts: Int[Tensor, " selected"], rows: Int[Tensor, " rows"]) -> None:
        """Continue with some prompts and, of each, the same number of rows."""
        self.group_size = len(rows) // len(prompts)
        if len(prompts) < len(self.prefix.mask):
            self.prefix = self.prefix.select(prompts)
        self._suffix = self._suffix[:, :, rows]
