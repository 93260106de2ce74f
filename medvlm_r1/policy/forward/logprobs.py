"""Teacher-forced log-probabilities in two layouts that give the same: packed is fast, repeated is plain.

Both take prompts with their picture features, and ``group_size`` completions of each, prompt-major.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from medvlm_r1.policy.encode import PromptBatch
from medvlm_r1.policy.forward.attention import run_layers
from medvlm_r1.policy.forward.lm_head import target_logprobs
from medvlm_r1.policy.forward.packing import GroupLayout, Padder
from medvlm_r1.policy.forward.vision import Model

Rows = Float[Tensor, "rows tokens"]


def embed(model: Model, prompts: PromptBatch, features: Tensor | None) -> Tensor:
    """Embeddings of the prompts' tokens ``[tokens, width]``, picture features in their places."""
    embeds = model.get_input_embeddings()(prompts.ids)
    if features is None:
        return embeds
    places = (prompts.ids == model.config.image_token_id).unsqueeze(-1).expand_as(embeds)
    if places.sum() != features.numel():
        raise RuntimeError(f"{len(features)} image features for {int(places[:, 0].sum())} image tokens")
    return embeds.masked_scatter(places, features.to(embeds.dtype))


def packed_logprobs(
    model: Model,
    prompts: PromptBatch,
    features: Tensor | None,
    tokens: Int[Tensor, "rows tokens"],
    lengths: Sequence[int],
    banned: Bool[Tensor, " vocabulary"],
    temperature: float,
) -> Rows:
    """Each prompt once, then its completions, unpadded; see :mod:`~medvlm_r1.policy.forward.packing`."""
    device, group_size = tokens.device, len(tokens) // len(prompts)
    # A completion's last token predicts nothing, so it is not fed.
    fed = Padder([max(n - 1, 0) for n in lengths], device)
    layout = GroupLayout(prompts.lengths, fed.lengths, device)
    behind = fed.unpad(tokens[:, : fed.longest])
    embeds = torch.cat([embed(model, prompts, features), model.get_input_embeddings()(behind)])
    starts = prompts.next_positions.repeat_interleave(group_size)
    steps = torch.arange(fed.longest, device=device)
    positions = fed.unpad(starts[:, None] + steps)
    positions = torch.cat([prompts.positions, positions.expand(3, -1)], dim=1)
    hidden = run_layers(inner_model(model).language_model, embeds, positions, layout)

    told = Padder(lengths, device)
    logprobs = target_logprobs(
        hidden[_predictors(prompts, lengths, fed).to(device)],
        model.get_output_embeddings().weight,
        told.unpad(tokens[:, : told.longest]),
        banned,
        temperature,
    )
    rows = told.pad(logprobs)
    return pad(rows, (0, tokens.shape[1] - rows.shape[1]))


def _predictors(prompts: PromptBatch, lengths: Sequence[int], fed: Padder) -> Int[Tensor, " told"]:
    """For each completion token, the place of the token before it: the prompt's last, or its neighbour."""
    group_size, start, places = len(lengths) // len(prompts), sum(prompts.lengths), []
    ends = prompts.ends.repeat_interleave(group_size)
    for row, (length, before) in enumerate(zip(lengths, fed.lengths, strict=True)):
        if length:
            places += [ends[row : row + 1], torch.arange(start, start + before)]
        start += before
    return torch.cat(places)


def repeated_logprobs(
    model: Model,
    prompts: PromptBatch,
    features: Tensor | None,
    tokens: Int[Tensor, "rows tokens"],
    lengths: Sequence[int],
    banned: Bool[Tensor, " vocabulary"],
    temperature: float,
) -> Rows:
    """The prompt again before each completion, padded, through transformers' own forward."""
    group_size = len(tokens) // len(prompts)
    embeds, seen, positions = repeat_prompts(model, prompts, features, group_size)
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    starts = prompts.next_positions.repeat_interleave(group_size)
    mask = steps < torch.tensor(lengths, device=tokens.device)[:, None]
    logits = model(
        inputs_embeds=torch.cat([embeds, model.get_input_embeddings()(tokens)], dim=1),
        attention_mask=torch.cat([seen, mask], dim=1).long(),
        position_ids=torch.cat([positions, (starts[:, None] + steps).expand(3, -1, -1)], dim=2),
        logits_to_keep=tokens.shape[1] + 1,
        use_cache=False,
    ).logits[:, :-1]
    logits = (logits.float() / temperature).masked_fill(banned, -torch.inf)
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _packed_counts(prompts: PromptBatch, tokens: Tensor, lengths: Sequence[int]) -> dict[str, int]:
    fed = sum(max(n - 1, 0) for n in lengths)
    return {"forward_tokens": sum(prompts.lengths) + fed, "lm_head_tokens": sum(lengths)}


def _repeated_counts(prompts: PromptBatch, tokens: Tensor, lengths: Sequence[int]) -> dict[str, int]:
    rows, longest = tokens.shape
    return {"forward_tokens": rows * (max(prompts.lengths) + longest), "lm_head_tokens": rows * (longest + 1)}


LAYOUTS = {
    "packed": (packed_logprobs, _packed_counts),
    "repeated": (repeated_logprobs, _repeated_counts),
}
"""By name: what computes log-probabilities, and what it costs."""


def repeat_prompts(
    model: Model, prompts: PromptBatch, features: Tensor | None, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions of the prompts, padded on the left, one row per completion."""
    _, mask, positions = prompts.padded()
    embeds = embed(model, prompts, features).split(prompts.lengths)
    embeds = torch.nn.utils.rnn.pad_sequence(embeds, True, padding_side="left")
    return (
        embeds.repeat_interleave(group_size, dim=0),
        mask.repeat_interleave(group_size, dim=0),
        positions.repeat_interleave(group_size, dim=1),
    )


def inner_model(model: Model) -> torch.nn.Module:
    """The module that holds ``visual`` and ``language_model``."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model
