"""Requests to vLLM's ``/inference/v1/generate``: our token ids and patches in, token ids and log-probs out.

Nothing is tokenised or resized twice: vLLM decodes after exactly the ids of :class:`EncodedPrompt`, and its
vision tower gets the pixel values that ours gets.
"""

import base64
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.sampling_noise import Sampling

# Added to the logits of banned tokens: JSON has no infinity, and exp(-1e9) is 0.
_BAN = -1e9
_RAW_BYTES = 3  # code of vLLM's message type for the bytes of a tensor


@dataclass(frozen=True)
class SampledTokens:
    """One completion: its tokens and the log-probability of each, as vLLM sampled them."""

    tokens: list[int]
    logprobs: list[float]


def generate_request(policy: Policy, prompt: EncodedPrompt, sampling: Sampling, seed: int) -> dict[str, Any]:
    """Body of the request for all completions of one prompt.

    vLLM seeds completion i with ``seed + i``. Only the policy's own ends of sequence end a completion.
    """
    return {
        "token_ids": prompt.ids.tolist(),
        "features": _features(policy, prompt) if len(prompt.grid) else None,
        "sampling_params": {
            "n": sampling.group_size,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": seed,
            "ignore_eos": True,
            "stop_token_ids": policy.eos_ids,
            "logit_bias": dict.fromkeys(policy.banned.nonzero().flatten().tolist(), _BAN),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        },
    }


def read_choices(
    response: dict[str, Any], policy: Policy, sampling: Sampling, version: str
) -> list[SampledTokens]:
    """The completions of a response, in the order of their seeds.

    Raises:
        ValueError: a completion neither ends nor reaches the limit, has no log-probabilities, or was sampled
            from weights of another version.
    """
    choices = sorted(response["choices"], key=lambda choice: choice["index"])
    if len(choices) != sampling.group_size:
        raise ValueError(f"{len(choices)} completions instead of {sampling.group_size}")
    rows = []
    for choice in choices:
        tokens = choice["token_ids"] or []
        logprobs = [token["logprob"] for token in (choice["logprobs"] or {}).get("content") or []]
        ended = bool(tokens) and (tokens[-1] in policy.eos_ids or len(tokens) == sampling.max_tokens)
        if not ended or len(tokens) != len(logprobs):
            raise ValueError(
                f"a completion of {len(tokens)} tokens and {len(logprobs)} log-probabilities, which ended "
                f"by {choice['finish_reason']!r}"
            )
        versions = {span["version"] for span in choice["weight_versions"] or []}
        if versions != {version}:
            raise ValueError(
                f"weights {', '.join(sorted(versions))} sampled instead of {version}: the server was "
                "restarted, or another run sends its weights to it"
            )
        rows.append(SampledTokens(tokens, logprobs))
    return rows


def _features(policy: Policy, prompt: EncodedPrompt) -> dict[str, Any]:
    """Place, content key and tensors of each image."""
    merge = policy.encoder.image_processor.merge_size
    pieces = prompt.pixels.split(prompt.grid.prod(1).tolist())
    ids, places, items, start = prompt.ids.tolist(), [], [], 0
    for pixels, grid in zip(pieces, prompt.grid, strict=True):
        start = ids.index(policy.image_id, start)
        length = int(grid.prod()) // merge**2
        places.append({"offset": start, "length": length})
        start += length
        flat = ["flat", {"keep_on_cpu": False, "slices": [[0, len(pixels), None]], "dim": 0}]
        item = {
            "pixel_values": {"data": _tensor(policy.encoder.pixel_values(pixels)), "field": flat},
            "image_grid_thw": {"data": _tensor(grid), "field": ["batched", {"keep_on_cpu": True}]},
        }
        items.append(base64.b64encode(pack(item)).decode())
    return {
        "mm_hashes": {"image": list(prompt.image_digests)},
        "mm_placeholders": {"image": places},
        "kwargs_data": {"image": items},
    }


def _tensor(tensor: Tensor) -> list[Any]:
    """A tensor as vLLM's messages hold it: dtype, shape, bytes."""
    values = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), values]


def pack(value: Any) -> bytes:
    """Encode as MessagePack (msgpack.org), with bytes as vLLM marks those of a tensor."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return b"\xd3" + struct.pack(">q", value)
        case str():
            return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
        case bytes():
            return b"\xc9" + struct.pack(">Ib", len(value), _RAW_BYTES) + value
        case list():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
        case dict():
            pairs = (pack(part) for pair in value.items() for part in pair)
            return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pairs)
    raise TypeError(f"cannot encode a {type(value).__name__}")
