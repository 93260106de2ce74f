"""Each prompt once with all its completions behind it: the layout that training passes run in.

A group of G completions costs P + sum of lengths tokens, not G times (P + the longest). Prompts stand
first in the row, one behind the other, then all completions; nothing is padded, except inside attention:

    | prompt 0 | prompt 1 | completion 0.0 | completion 0.1 | ... | completion 1.0 | ...

A completion sees its own prompt and itself, and its positions go on from the prompt's last, so what comes
out is what each completion alone behind its own copy of the prompt would give.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from medvlm_r1.policy.forward.attention import AttentionLayout, shared_prefix_attention

Heads = Float[Tensor, "tokens heads size"]


class Padder:
    """Sequences of different lengths, one behind the other, and how they go into a padded block and back.

    Args:
        lengths: tokens of each sequence.
        multiple: the block is so many tokens long, or twice as many, and so on.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, multiple: int = 1) -> None:
        self.lengths, self.longest = tuple(lengths), -(-max(1, *lengths) // multiple) * multiple
        # On the host, so that it reads nothing from the device: token i of sequence s goes to place
        # s * longest + i.
        places = [torch.arange(n) + s * self.longest for s, n in enumerate(self.lengths)]
        self.places = torch.cat(places).to(device)
        self.filled = (torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]).to(device)

    def __len__(self) -> int:
        """Tokens, padding excluded."""
        return sum(self.lengths)

    def pad(self, tokens: Shaped[Tensor, "tokens ..."]) -> Shaped[Tensor, "sequences longest ..."]:
        """Zeros behind each sequence's end."""
        if len(self) == self.filled.numel():
            return tokens.unflatten(0, self.filled.shape)
        block = tokens.new_zeros(self.filled.numel(), *tokens.shape[1:])
        return block.index_copy(0, self.places, tokens).unflatten(0, self.filled.shape)

    def unpad(self, block: Shaped[Tensor, "sequences longest ..."]) -> Shaped[Tensor, "tokens ..."]:
        """What :meth:`pad` was given."""
        flat = block.flatten(0, 1)
        return flat if len(self) == len(flat) else flat.index_select(0, self.places)


class PromptLayout(AttentionLayout):
    """Prompts in one row, each seeing itself alone, causally.

    Args:
        lengths: tokens of each prompt.
        keep: keep keys and values, for completions that are decoded later.
        multiple: see :class:`Padder`.
    """

    def __init__(
        self, lengths: Sequence[int], device: torch.device, keep: bool = False, multiple: int = 1
    ) -> None:
        self.blocks = Padder(lengths, device, multiple)
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None

    def attend(self, layer, query, key, value, scaling):
        return self.attend_and_keep(query[0], key[0], value[0], scaling)[0]

    def attend_and_keep(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> tuple[Heads, tuple[Tensor, Tensor]]:
        """What the prompts see, and their keys and values as ``[prompts, kv_heads, longest, size]``."""
        query, key, value = (self.blocks.pad(x.transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
        # Padding is on the right, where a causal mask hides it already. Key heads are repeated because not
        # every kernel takes fewer of them; there is but one copy of each prompt.
        shared = query.shape[1] // key.shape[1]
        every = (x.repeat_interleave(shared, dim=1) for x in (key, value))
        seen = functional.scaled_dot_product_attention(query, *every, is_causal=True, scale=scaling)
        if self.kept is not None:
            self.kept.append((key, value))
        return self.blocks.unpad(seen.transpose(1, 2)), (key, value)


class GroupLayout(AttentionLayout):
    """Prompts, and behind them ``group_size`` completions of each.

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each completion, prompt-major; 0 is allowed.
    """

    def __init__(self, prompts: Sequence[int], completions: Sequence[int], device: torch.device) -> None:
        self.prompts = PromptLayout(prompts, device)
        self.completions = Padder(completions, device)
        self.group_size = len(completions) // len(prompts)
        longest = self.completions.longest
        self.causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()

    @property
    def last_prompt_tokens(self) -> Int[Tensor, " prompts"]:
        """Where in the row each prompt ends; on the host."""
        return torch.tensor(self.prompts.blocks.lengths).cumsum(0) - 1

    def attend(self, layer, query, key, value, scaling):
        cut = [len(self.prompts.blocks), len(self.completions)]
        (query, q), (key, k), (value, v) = (x[0].split(cut, dim=1) for x in (query, key, value))
        seen, prefix = self.prompts.attend_and_keep(query, key, value, scaling)
        if not cut[1]:
            return seen
        return torch.cat([seen, self._completions(q, k, v, prefix, scaling)])

    def _completions(self, query, key, value, prefix, scaling) -> Heads:
        kv_heads, shared = len(key), len(query) // len(key)

        def rows(x: Tensor) -> Tensor:  # [groups, rows, heads, longest, size]
            padded = self.completions.pad(x.transpose(0, 1)).transpose(1, 2)
            return padded.unflatten(0, (-1, self.group_size))

        # query heads in a row share their key head with their neighbours
        query = rows(query).unflatten(2, (kv_heads, shared)).flatten(3, 4)
        seen = shared_prefix_attention(
            query,
            prefix,
            (rows(key), rows(value)),
            self.prompts.blocks.filled,
            self.causal.repeat(shared, 1),
            scaling,
        )
        seen = seen.unflatten(3, (shared, -1)).flatten(2, 3).flatten(0, 1).transpose(1, 2)
        return self.completions.unpad(seen)
