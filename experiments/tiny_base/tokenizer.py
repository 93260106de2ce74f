"""The tiny model's tokenizer: Qwen2's tokenizer class with a small vocabulary.

A byte-level BPE with Qwen2's pre-tokenisation, so any text encodes; trained on prompt templates, phantom
questions and findings, so that each of their words is one token.
"""

import json
from collections.abc import Iterable

from batches import PROMPTS, prompt_style
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from medvlm_r1.phantom import FINDINGS, MODALITIES, PhantomSource

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2-VL-Instruct's layout: default system turn, and the image tokens directly before the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int = 1000) -> Qwen2Tokenizer:
    """Train the byte-level BPE on ``texts`` and wrap it as transformers' ``Qwen2Tokenizer``.

    Args:
        texts: training text. Characters that must stay separate tokens (``>`` and the letter after it) must
            not be adjacent in it: BPE never merges a pair that does not occur.
        vocabulary: maximum number of entries without special tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)

    # The vocabulary must contain the special tokens before construction: added afterwards, the end of
    # sequence would take the first free id and change the order of the others.
    vocab = dict(sorted(bpe.get_vocab().items(), key=lambda entry: entry[1]))
    vocab |= {token: len(vocab) + i for i, token in enumerate(SPECIALS)}
    merges = [tuple(pair) for pair in _merges(bpe)]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIALS[1:]),
        padding_side="left",
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _merges(bpe: Tokenizer) -> list[list[str]]:
    """Return the learnt merges in order, from the library's file format."""
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [pair if isinstance(pair, list) else pair.split(" ") for pair in merges]


def corpus() -> list[str]:
    """Return the training text of the tokenizer, each text twice, so that every word becomes one token.

    No letter follows ``>`` or precedes ``)`` in it, so letters stay separate tokens.
    """
    styles = [prompt_style(path.stem) for path in sorted(PROMPTS.glob("*.yaml"))]
    templates = [text.replace("{Question}", "") for one in styles for text in (one.train, one.evaluate)]
    questions = {one.question for name in MODALITIES for one in PhantomSource(name, 300, split="base")}
    names = {word for classes in FINDINGS.values() for group in classes.values() for word in group}
    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    tags = ["<think", "<answer", ".</", ">\n", "The image shows", "Findings:"]
    texts = [*templates, *chat, *tags, *sorted(questions), *sorted(names), *(f" {w}" for w in sorted(names))]
    return texts * 2
