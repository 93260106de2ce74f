"""Packed training passes: each prompt once, followed by all its completions.

A group of G completions costs P + sum of lengths tokens, not G * (P + the longest). The row holds all
prompts, then all completions, without padding except inside attention:

    | prompt 0 | prompt 1 | completion 0.0 | completion 0.1 | ... | completion 1.0 | ...

A completion attends to its own prompt and to itself, at the positions after its prompt, so its outputs are
those of the completion alone after its own copy of the prompt.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from medvlm_r1.policy.forward.attention import AttentionLayout, shared_prefix_attention
from medvlm_r1.policy.forward.joined_attention import Kernel, Spans, joined_attention, kernel_for

Output = Float[Tensor, "tokens heads size"]
Query = Float[Tensor, "heads tokens size"]
Key = Float[Tensor, "kv_heads tokens size"]
Keys = Float[Tensor, "prompts kv_heads longest size"]


class Padder:
    """Converts sequences between one row and a padded block."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.longest = tuple(lengths), max(1, *lengths)
        # On the host, without reading from the device: token i of sequence s goes to s * longest + i.
        indices = [torch.arange(n) + s * self.longest for s, n in enumerate(self.lengths)]
        self.indices = torch.cat(indices).to(device)
        self.mask = (torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]).to(device)

    def __len__(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)

    def pad(self, tokens: Shaped[Tensor, "tokens *rest"]) -> Shaped[Tensor, "sequences longest *rest"]:
        """Pad each sequence with zeros on the right."""
        if len(self) == self.mask.numel():
            return tokens.unflatten(0, self.mask.shape)
        block = tokens.new_zeros(self.mask.numel(), *tokens.shape[1:])
        return block.index_copy(0, self.indices, tokens).unflatten(0, self.mask.shape)

    def unpad(self, block: Shaped[Tensor, "sequences longest *rest"]) -> Shaped[Tensor, "tokens *rest"]:
        """Inverse of :meth:`pad`."""
        flat = block.flatten(0, 1)
        return flat if len(self) == len(flat) else flat.index_select(0, self.indices)


class PromptLayout(AttentionLayout):
    """Prompts in one row, each with causal attention to itself.

    ``keep_keys`` appends keys and values to :attr:`layers`, for completions to be decoded later.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, keep_keys: bool = False) -> None:
        self.padder, self.keep_keys = Padder(lengths, device), keep_keys
        self.layers: list[tuple[Keys, Keys]] = []

    def attend(self, module, query, key, value, scaling):
        return self.attend_with_keys(query[0], key[0], value[0], scaling)[0]

    def attend_with_keys(
        self, query: Query, key: Key, value: Key, scaling: float
    ) -> tuple[Output, tuple[Keys, Keys]]:
        """Attention output, and padded keys and values."""
        query, key, value = (self.padder.pad(x.transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
        # The causal mask hides the padding on the right. Key heads are repeated because not every kernel
        # takes fewer of them; there is only one copy of each prompt.
        shared = query.shape[1] // key.shape[1]
        repeated = (x.repeat_interleave(shared, dim=1) for x in (key, value))
        output = functional.scaled_dot_product_attention(query, *repeated, is_causal=True, scale=scaling)
        if self.keep_keys:
            self.layers.append((key, value))
        return self.padder.unpad(output.transpose(1, 2)), (key, value)


class GroupLayout(AttentionLayout):
    """Prompts, then ``group_size`` completions of each, prompt-major; a completion may have 0 tokens.

    ``kernel`` computes the completions' attention; by default that of the device, else fp32 scores in memory.
    """

    def __init__(
        self,
        prompts: Sequence[int],
        completions: Sequence[int],
        device: torch.device,
        kernel: Kernel | None = None,
    ) -> None:
        self.prompts = PromptLayout(prompts, device)
        self.completions = Padder(completions, device)
        self.group_size = len(completions) // len(prompts)
        longest = self.completions.longest
        self.causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        self.kernel = kernel
        groups = torch.tensor(completions).view(len(prompts), -1).sum(1).tolist()
        self.spans = Spans(groups, prompts, False, device), Spans(completions, completions, True, device)

    def attend(self, module, query, key, value, scaling):
        sizes = [len(self.prompts.padder), len(self.completions)]
        (query, q), (key, k), (value, v) = (x[0].split(sizes, dim=1) for x in (query, key, value))
        output, prefix = self.prompts.attend_with_keys(query, key, value, scaling)
        if not sizes[1]:
            return output
        if kernel := self.kernel or kernel_for(query.device, query.dtype):
            q, k, v, key, value = (x.transpose(0, 1) for x in (q, k, v, key, value))
            completions = joined_attention(q, (key, value), (k, v), self.spans, scaling, kernel)
        else:
            completions = self._attend_completions(q, k, v, prefix, scaling)
        return torch.cat([output, completions])

    def _attend_completions(
        self, query: Query, key: Key, value: Key, prefix: tuple[Keys, Keys], scaling: float
    ) -> Output:
        kv_heads, shared = len(key), len(query) // len(key)

        def rows(x: Query) -> Float[Tensor, "groups rows heads longest size"]:
            padded = self.completions.pad(x.transpose(0, 1)).transpose(1, 2)
            return padded.unflatten(0, (-1, self.group_size))

        # neighbouring query heads share a key head
        output = shared_prefix_attention(
            rows(query).unflatten(2, (kv_heads, shared)).flatten(3, 4),
            prefix,
            (rows(key), rows(value)),
            self.prompts.padder.mask,
            self.causal.repeat(shared, 1),
            scaling,
        )
        output = output.unflatten(3, (shared, -1)).flatten(2, 3).flatten(0, 1).transpose(1, 2)
        return self.completions.unpad(output)
