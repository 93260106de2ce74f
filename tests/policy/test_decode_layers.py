"""The decoding pass over transformers' layers: the same roundings, adapters and quantised weights."""

import copy

import pytest
import torch
from models import FAMILIES
from peft import LoraConfig
from training import RECIPE
from transformers.models.qwen2_vl import modeling_qwen2_vl

from medvlm_r1.policy.forward.decode_layers import _rms_norm, _rotary_tables, _rotate
from medvlm_r1.policy.forward.model import inner_model
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


@pytest.fixture(params=FAMILIES)
def layers(request, policy_of):
    """The language model of each family, in bf16 with weights of the norms that are not 1."""
    policy = policy_of(request.param)
    model = copy.deepcopy(inner_model(policy.model).language_model).to(torch.bfloat16).requires_grad_(False)
    torch.nn.init.normal_(model.layers[0].input_layernorm.weight)
    return model


def test_norms_round_to_bf16_where_transformers_does(layers):
    norm = layers.layers[0].input_layernorm
    hidden = 3 * torch.randn(50, layers.config.hidden_size, dtype=torch.bfloat16)
    assert torch.equal(_rms_norm(norm, hidden), norm(hidden))


def test_rotations_round_to_bf16_where_transformers_does(layers):
    size = layers.layers[0].self_attn.head_dim
    x = torch.randn(7, 3, size, dtype=torch.bfloat16)
    positions = torch.tensor([0, 1, 5, 300, 700, 701, 1200]).expand(3, -1)
    cos, sin = layers.rotary_emb(x[None, :, 0], positions[:, None])
    if cos.ndim == 4:  # before transformers 5.2x
        cos, sin = cos[0], sin[0]
    rotate_half = modeling_qwen2_vl.rotate_half
    expected = x * cos[0][:, None] + rotate_half(x) * sin[0][:, None]
    _rotate(x, 3, *_rotary_tables(layers.rotary_emb, x[:, 0], positions))
    assert torch.equal(x, expected)


def test_four_bits_decode_like_generate(prompts):
    pytest.importorskip("bitsandbytes")
    policy = load_policy("embedded", RECIPE, tuning=Tuning("nothing", quantize="nf4"))
    assert_decodes_like_generate(policy, prompts)


@pytest.mark.parametrize(("family", "norms"), [("qwen2_vl", []), ("qwen3_vl", ["q_norm", "k_norm"])])
def test_wrapped_norms_decode_like_generate(family, norms, prompts_of, policy_of):
    shared = policy_of(family)
    prompts = prompts_of(shared)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["input_layernorm", *norms])
    policy = Policy(Tuning("adapter", config).apply(copy.deepcopy(shared.model)), shared.encoder)
    for name, parameter in policy.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter)
    assert_decodes_like_generate(policy, prompts)


def assert_decodes_like_generate(policy, prompts):
    arguments = list(prompts.values())[:3], Sampling(group_size=2, max_tokens=6), NoiseKey(0, 0)
    ours, theirs = (engine(policy, *arguments) for engine in (SharedPrefixEngine(), ReferenceEngine()))
    assert torch.equal(ours.tokens, theirs.tokens)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=3e-5)
