"""Decode all completions of several prompts, one token per step, from one copy of each prompt's keys."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from medvlm_r1.policy.forward.decoding_attention import DecodingAttention
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


@dataclass(frozen=True)
class CacheShape:
    """Number of prompts, of completions per prompt, and the most tokens of each."""

    prompts: int
    group_size: int
    prompt_tokens: int
    max_tokens: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    @property
    def tokens(self) -> int:
        """Tokens with keys and values: prompts are stored once per group."""
        return self.prompts * self.prompt_tokens + self.rows * self.max_tokens


class KVCache:
    """Keys and values of prompts and of their completions, in all layers.

    Rows are prompt-major, ``group_size`` per prompt. The tensors stay where they are: prompts and rows are
    replaced, or moved to the front, in place. So CUDA graphs can read them in every rollout.

    Args:
        config: of the model, for the number of layers and the size of keys.
        memory: of at least :meth:`size` elements and finite; allocated by default.

    Attributes:
        prefix: keys and values of prompts, ``[layers, 2, prompts, heads, prompt_tokens, size]``.
        suffix: those of completions, ``[layers, 2, rows, heads, max_tokens, size]``.
        mask: false at the padding of prompts, ``[prompts, prompt_tokens]``.
        starts: rotary position of the first token of each prompt's completions, ``[prompts]``.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        memory: Float[Tensor, " elements"] | None = None,
    ) -> None:
        self.shape = shape
        layers, heads, width = _dimensions(config)
        if memory is None:
            memory = torch.zeros(self.size(config, shape), dtype=dtype, device=device)
        tokens = shape.prompts * shape.prompt_tokens, shape.rows * shape.max_tokens
        prefix, suffix = memory[: self.size(config, shape)].split(
            [2 * layers * heads * width * n for n in tokens]
        )
        self.prefix = prefix.view(layers, 2, shape.prompts, heads, shape.prompt_tokens, width)
        self.suffix = suffix.view(layers, 2, shape.rows, heads, shape.max_tokens, width)
        self.mask = torch.zeros(shape.prompts, shape.prompt_tokens, dtype=torch.bool, device=device)
        self.starts = torch.zeros(shape.prompts, dtype=torch.long, device=device)

    @staticmethod
    def size(config: PreTrainedConfig, shape: CacheShape) -> int:
        """Elements of all keys and values."""
        layers, heads, width = _dimensions(config)
        return 2 * layers * heads * width * shape.tokens

    def store(self, prompts: Int[Tensor, " stored"], filled: PromptCache) -> None:
        """Replace some of the prompts."""
        length = filled.mask.shape[1]
        for stored, keys_and_values in zip(self.prefix, filled.layers, strict=True):
            for own, new in zip(stored, keys_and_values, strict=True):
                own[prompts, :, :length] = new
        self.mask[prompts] = False
        self.mask[prompts, :length] = filled.mask
        self.starts[prompts] = filled.positions

    def move_to_front(self, prompts: Int[Tensor, " kept"], rows: Int[Tensor, " kept_rows"]) -> None:
        """Move some prompts and rows to the front, in this order."""
        for tensor in (self.mask, self.starts, *self.prefix.flatten(0, 1)):
            tensor[: len(prompts)] = tensor[prompts]
        for tensor in self.suffix.flatten(0, 1):
            tensor[: len(rows)] = tensor[rows]


def _dimensions(config: PreTrainedConfig) -> tuple[int, int, int]:
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers, text.num_key_value_heads, size


class DecodingLayout:
    """One new token of each row attends to its prompt and to the row's earlier tokens.

    Shapes and addresses are the same in every step, so a step can be compiled and captured as a CUDA graph.

    Args:
        steps: tokens of each row before the new one, ``[rows]``.
        prompts: the first ones of the cache, with equally many rows.
        window: the first tokens of each row that are read; those after the new one are masked.
    """

    def __init__(self, cache: KVCache, steps: Int[Tensor, " rows"], prompts: int, window: int) -> None:
        self.cache, self.steps, self.prompts, self.window = cache, steps, prompts, window

    @property
    def positions(self) -> Int[Tensor, "3 rows"]:
        """Rotary positions of this step's tokens."""
        starts = self.cache.starts[: self.prompts, None]
        return (starts + self.steps.view(self.prompts, -1)).flatten().expand(3, -1)

    def attention(self) -> DecodingAttention:
        """The attention of this step."""
        cache = self.cache
        prefix, suffix = cache.prefix[:, :, : self.prompts], cache.suffix[:, :, : len(self.steps)]
        return DecodingAttention(prefix, suffix, cache.mask[: self.prompts], self.steps, self.window)
