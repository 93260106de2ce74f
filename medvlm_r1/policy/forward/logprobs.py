"""Teacher-forced log-probabilities in two layouts with equal results: packed is fast, repeated is plain.

Both take prompts with their image features, ``group_size`` completions of each, prompt-major, the number of
tokens of each (``lengths``; later ones are padding), and ids with probability 0 (``banned``). They return the
log-probabilities and the counters of the pass.
"""

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from medvlm_r1.policy.encode import PromptBatch
from medvlm_r1.policy.forward.attention import run_layers
from medvlm_r1.policy.forward.lm_head import Banned, target_logprobs
from medvlm_r1.policy.forward.model import Model, inner_model
from medvlm_r1.policy.forward.packing import GroupLayout, Padder
from medvlm_r1.policy.forward.vision import Features

Tokens = Int[Tensor, "rows tokens"]
Counted = tuple[Float[Tensor, "rows tokens"], dict[str, int]]


def embed(model: Model, prompts: PromptBatch, features: Features) -> list[Float[Tensor, "tokens width"]]:
    """Embeddings of the prompts' tokens, with image features at the image tokens.

    Returns:
        The embeddings, then what DeepStack adds behind each of the first layers: 0 except at image tokens.

    Raises:
        RuntimeError: the number of features is not the number of image tokens.
    """
    embeds = model.get_input_embeddings()(prompts.ids)
    if not (images := [*chain(*features)]):
        return [embeds]
    is_image = (prompts.ids == model.config.image_token_id).unsqueeze(-1)
    if is_image.sum() != (count := sum(map(len, images))):
        raise RuntimeError(f"{count} image features for {int(is_image.sum())} image tokens")
    levels = torch.cat(images).to(embeds.dtype).split(embeds.shape[-1], dim=-1)
    targets = [embeds, *[torch.zeros_like(embeds)] * (len(levels) - 1)]
    return [target.masked_scatter(is_image, level) for target, level in zip(targets, levels, strict=True)]


def packed_logprobs(
    model: Model,
    prompts: PromptBatch,
    features: Features,
    tokens: Tokens,
    lengths: Sequence[int],
    banned: Banned,
    temperature: float,
) -> Counted:
    """Each prompt once, then its completions, unpadded; see :mod:`~medvlm_r1.policy.forward.packing`."""
    device, group_size = tokens.device, len(tokens) // len(prompts)
    # A completion's last token predicts nothing, so it is no input.
    inputs = Padder([max(n - 1, 0) for n in lengths], device)
    layout = GroupLayout(prompts.lengths, inputs.lengths, device)
    input_ids = inputs.unpad(tokens[:, : inputs.longest])
    embeds, *deepstack = embed(model, prompts, features)
    embeds = torch.cat([embeds, model.get_input_embeddings()(input_ids)])
    starts = prompts.next_positions.repeat_interleave(group_size)
    steps = torch.arange(inputs.longest, device=device)
    positions = inputs.unpad(starts[:, None] + steps)
    positions = torch.cat([prompts.positions, positions.expand(3, -1)], dim=1)
    hidden = run_layers(inner_model(model).language_model, embeds, positions, layout, deepstack)

    targets = Padder(lengths, device)
    logprobs = target_logprobs(
        hidden[_predictors(prompts, lengths, inputs).to(device)],
        model.get_output_embeddings().weight,
        targets.unpad(tokens[:, : targets.longest]),
        banned,
        temperature,
    )
    rows = targets.pad(logprobs)
    counts = {"forward_tokens": len(embeds), "lm_head_tokens": sum(lengths)}
    return pad(rows, (0, tokens.shape[1] - rows.shape[1])), counts


def _predictors(prompts: PromptBatch, lengths: Sequence[int], inputs: Padder) -> Int[Tensor, " targets"]:
    """Index of the token before each completion token, the prompt's last for a completion's first."""
    group_size, start, indices = len(lengths) // len(prompts), sum(prompts.lengths), []
    ends = prompts.ends.repeat_interleave(group_size)
    for row, (length, before) in enumerate(zip(lengths, inputs.lengths, strict=True)):
        if length:
            indices += [ends[row : row + 1], torch.arange(start, start + before)]
        start += before
    return torch.cat([torch.empty(0, dtype=torch.long), *indices])


def repeated_logprobs(
    model: Model,
    prompts: PromptBatch,
    features: Features,
    tokens: Tokens,
    lengths: Sequence[int],
    banned: Banned,
    temperature: float,
) -> Counted:
    """The prompt before each completion, padded, through transformers' own forward."""
    group_size = len(tokens) // len(prompts)
    inputs = repeat_prompts(model, prompts, features, group_size)
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    starts = prompts.next_positions.repeat_interleave(group_size)
    mask = steps < torch.tensor(lengths, device=tokens.device)[:, None]
    completions = {"input_ids": tokens, "attention_mask": mask.long()}
    completions["position_ids"] = (starts[:, None] + steps).expand(3, -1, -1)
    inputs |= {name: torch.cat([inputs[name], tensor], dim=-1) for name, tensor in completions.items()}
    logits = model(**inputs, logits_to_keep=tokens.shape[1] + 1, use_cache=False).logits[:, :-1]
    logits = (logits.float() / temperature).masked_fill(banned, -torch.inf)
    counts = {"forward_tokens": inputs["input_ids"].numel(), "lm_head_tokens": tokens.numel() + len(tokens)}
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1), counts


LAYOUTS = {"packed": packed_logprobs, "repeated": repeated_logprobs}


def repeat_prompts(model: Model, prompts: PromptBatch, features: Features, group_size: int) -> dict[str, Any]:
    """Inputs of transformers' forward: the prompts padded on the left, one row per completion."""
    ids, mask, positions = prompts.padded()
    images = [image for own in features for _ in range(group_size) for image in own]
    width = model.config.text_config.hidden_size
    levels = [*zip(*(image.split(width, dim=-1) for image in images), strict=True)]
    encoded = SimpleNamespace(pooler_output=levels[0], deepstack_features=levels[1:]) if images else None
    return {
        "input_ids": ids.repeat_interleave(group_size, dim=0),
        "attention_mask": mask.long().repeat_interleave(group_size, dim=0),
        # without them, transformers takes positions from the state of an earlier pass
        "position_ids": positions.repeat_interleave(group_size, dim=1),
        "mm_encoder_outputs": {"image": encoded},
    }
