"""Attention of one decoding step: one new token per row, after a prompt that the rows of a group share."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Product = Float[Tensor, "batch queries last"]


class DecodingAttention:
    """Attention of each row's new token to its prompt and to the row's tokens, in all layers of one step.

    A prompt's keys are read once per group: its rows, and the query heads that share a key head, are queries
    of one matrix product. One softmax in fp32 covers prompt and completion. Rows are prompt-major.

    Args:
        prefix: keys and values of the prompts. Prompts and heads must flatten without a copy.
        suffix: those of the rows, likewise; the step writes its own at ``steps``.
        prefix_mask: false at padding.
        steps: tokens of each row before the new one.
        window: attention reads the first ``window`` tokens of each row; those after the new one are masked.
    """

    def __init__(
        self,
        prefix: Float[Tensor, "layers 2 prompts kv_heads prefix size"],
        suffix: Float[Tensor, "layers 2 rows kv_heads tokens size"],
        prefix_mask: Bool[Tensor, "prompts prefix"],
        steps: Int[Tensor, " rows"],
        window: int,
    ) -> None:
        self.prefix, self.suffix, self.steps, self.window = prefix, suffix, steps, window
        self.rows = torch.arange(len(steps), device=steps.device)
        prompts, group_size = len(prefix_mask), len(steps) // len(prefix_mask)
        written = (torch.arange(window, device=steps.device) <= steps[:, None]).view(prompts, group_size, -1)
        visible = torch.cat([prefix_mask[:, None].expand(-1, group_size, -1), written], -1)
        self.bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "rows heads size"],
        key_value: Float[Tensor, "rows 2 kv_heads size"],
        scaling: float,
    ) -> Float[Tensor, "rows width"]:
        """Attention of one layer; query and key are already rotated.

        Args:
            key_value: keys and values of the new tokens.
            scaling: factor of the scores.
        """
        self.suffix[layer][:, self.rows, :, self.steps] = key_value
        prefix_k, prefix_v = (x.flatten(0, 1) for x in self.prefix[layer])
        suffix_k, suffix_v = (x[:, :, : self.window].flatten(0, 1) for x in self.suffix[layer])
        (prompts, group_size), heads, prefix = self.bias.shape[:2], key_value.shape[2], prefix_k.shape[1]

        def by_row(x: Product) -> Float[Tensor, "prompts group_size kv_heads queries last"]:
            return x.view(prompts, heads, group_size, -1, x.shape[-1]).transpose(1, 2)

        def by_prompt(x: Float[Tensor, "prompts group_size kv_heads queries last"]) -> Product:
            return x.transpose(1, 2).reshape(prompts * heads, -1, x.shape[-1])

        shape = (prompts, group_size, heads, query.shape[1] // heads)
        query = query.reshape(*shape, -1)
        scores = [
            by_row(_product(by_prompt(query), prefix_k.mT)),
            _product(query.flatten(0, 2), suffix_k.mT).view(*shape, -1),
        ]
        bias = self.bias[:, :, None, None]
        probs = torch.add(bias, torch.cat(scores, -1), alpha=scaling).softmax(-1).to(query.dtype)
        of_prefix = _product(by_prompt(probs[..., :prefix]), prefix_v)
        of_suffix = _product(probs[..., prefix:].flatten(0, 2), suffix_v)
        output = torch.empty_like(query)
        torch.add(of_suffix.view_as(output), by_row(of_prefix), out=output)
        return output.view(len(self.rows), -1)


def _product(a: Product, b: Float[Tensor, "batch last other"]) -> Float[Tensor, "batch queries other"]:
    """``a @ b`` in fp32, whatever the dtype of the operands; without rounding on a GPU."""
    if a.device.type != "cpu" and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()
