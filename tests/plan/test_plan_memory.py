"""Memory of one device, against arithmetic on paper."""

import dataclasses

import pytest
import torch
from plans import ALL, PAPER, TOWER, held, planned, read, trained

from medvlm_r1.plan.inventory import NF4_BYTES
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import PHASES
from medvlm_r1.plan.passes import decode
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.loading.architecture import PUBLISHED, cache_bytes_per_token, load_config, meta_model
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

# Half of the bytes of the tensors in the published safetensors files, which are bf16.
SIZES = {
    "Qwen/Qwen2-VL-2B-Instruct": ALL,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2-VL-72B-Instruct": 73_405_560_320,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}


@pytest.mark.parametrize("path", SIZES)
def test_the_published_architectures_have_their_published_size(path):
    model = meta_model(load_config(path), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == SIZES[path]


def test_fine_tunes_and_thinking_editions_have_the_architecture_of_their_base():
    bases = {path: path.replace("Thinking", "Instruct") for path in PUBLISHED if path.endswith("Thinking")}
    bases["JZPeterPan/MedVLM-R1"] = "Qwen/Qwen2-VL-2B-Instruct"
    assert bases.keys() | SIZES.keys() == set(PUBLISHED)
    assert all(repr(load_config(path)) == repr(load_config(base)) for path, base in bases.items())


def test_the_papers_run_by_hand(paper):
    """bf16 weights with fp32 copies, two fp32 moments, a frozen copy as the reference."""
    assert held(paper, "weights") == ALL * 2 == 4_417_971_200
    assert held(paper, "fp32 master copies") == ALL * 4
    assert held(paper, "optimiser's moments") == ALL * 8
    assert held(paper, "gradients") == ALL * 2
    assert held(paper, "gradients", "sampling") == 0
    assert held(paper, "reference") == ALL * 2
    assert held(paper, "fp32 gradients", "update") == ALL * 4
    assert trained(paper) == {
        "language model": ALL - TOWER,
        "vision tower": TOWER,
        "adapter": 0,
        "head": 0,
    }
    asked = paper.workload.questions
    assert asked.steps == 600 // 4 * 2
    # validated four times an epoch, before and after; 100 questions each; 900 in the tests
    assert asked.evaluations == 100 * (2 * 4 + 2) + 5 * 900  # under every control but the prior


def test_keys_and_values_by_hand(paper):
    """Two tensors, 28 layers, 2 heads of 128, 2 bytes. 128 rows decode together in the evaluation, the larger
    rollout; prompts are padded to 768 tokens. The memory stays in all phases.
    """
    per_token = 2 * 28 * 2 * 128 * 2
    assert per_token == cache_bytes_per_token(load_config(paper.workload.path), torch.bfloat16) == 28_672
    assert paper.workload.prompt_tokens <= 768
    for phase in PHASES:
        assert held(paper, "keys and values", phase) == per_token * 128 * (768 + 512)


def test_memory_of_rollouts_is_limited_and_may_be_freed():
    limited = planned(PAPER, "rollout.max_memory_gb=1")
    assert 0.9e9 < held(limited, "keys and values") <= 1e9
    freed = planned(PAPER, "rollout.keep_memory=false")
    assert held(freed, "keys and values") == held(freed, "CUDA graphs") == 0
    # four prompts of four completions in training
    assert held(freed, "keys and values", "sampling") == 28_672 * (4 * 768 + 16 * 512)
    assert held(freed, "keys and values", "evaluation") == 28_672 * 128 * (768 + 512)
    assert held(freed, "CUDA graphs", "sampling") > 16 * 151_936 * 2
    plain = planned(PAPER, "rollout.record=off")  # prompts are padded to the longest
    assert held(plain, "keys and values", "evaluation") == 28_672 * 128 * (plain.workload.prompt_tokens + 512)
    assert held(plain, "CUDA graphs", "evaluation") == 0


def test_the_engine_allocates_the_keys_and_values_of_the_plan(questions, short_style):
    sizes = {"prompts_per_step": 2, "group_size": 3, "evaluation_batch": 2, "max_completion_tokens": 4}
    made = planned("model=tiny", *(f"model.recipe.{name}={size}" for name, size in sizes.items()))
    run = made.workload
    policy = load_policy("embedded", run.recipe)
    asked = [
        policy.encoder.encode(dataclasses.replace(questions["square"], id=str(i)), "test", short_style)
        for i in range(2 * run.questions.answers)
    ]
    engine = SharedPrefixEngine(capture=lambda step: step)
    engine(policy, asked, run.answering, NoiseKey(0, 0))
    engine(policy, asked[: run.prompts], run.sampling, NoiseKey(0, 0))
    assert engine.recorder.memory_bytes == held(made, "keys and values")


@pytest.mark.parametrize("greedy", [False, True])
def test_a_decoding_step_on_meta_needs_the_memory_of_a_real_one(greedy):
    run = read("model=tiny")
    policy, meta = load_policy("embedded", run.recipe), Meter(load_config("embedded"), run.recipe, Tuning())
    size = CacheShape(4, 8, 256, 32), 32, run.answering if greedy else run.sampling
    assert meta.decode(*size).peak == pytest.approx(decode(policy, *size).peak, rel=0.1)


def test_without_kl_there_is_no_reference():
    made = planned(PAPER, "method.beta=0")
    assert held(made, "reference") == 0
    assert "reference" not in made.phases


def test_a_frozen_tower_is_shared_with_the_reference():
    made = planned(PAPER, "peft=language_model")
    assert held(made, "reference") == (ALL - TOWER) * 2
    assert held(made, "fp32 master copies") == (ALL - TOWER) * 4


def test_adapters_by_hand():
    """Rank 16 on every linear layer: 16 x (inputs + outputs) each, 28 times."""
    width, inner, narrow = 1536, 8960, 2 * 128
    attention = 2 * (width + width) + 2 * (width + narrow)  # q and o, k and v
    adapters = 28 * 16 * (attention + 3 * (width + inner))
    made = planned(PAPER, "peft=lora")
    assert trained(made) == {"language model": 0, "vision tower": 0, "adapter": adapters, "head": 0}
    assert held(made, "weights") == (ALL + adapters) * 2
    assert held(made, "optimiser's moments") == adapters * 8
    assert held(made, "reference") == 0


def test_four_bits_by_hand():
    """28 layers of q, o (1536 x 1536), k, v (1536 x 256) and the MLP's three (1536 x 8960)."""
    linear = 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    made, whole = planned(PAPER, "peft=qlora"), planned(PAPER, "peft=lora")
    # of 64 weights: 32 bytes, one scale of one byte, and a 256th of four bytes
    assert NF4_BYTES == (32 + 1 + 4 / 256) / 64 == pytest.approx(0.5159, abs=1e-4)
    assert held(whole, "weights") - held(made, "weights") == pytest.approx(linear * (2 - NF4_BYTES))


def test_a_fused_optimiser_needs_no_scratch():
    fused, plain = (planned(PAPER, f"++optimizer.fused={fused}") for fused in ("null", "false"))
    assert held(plain, "optimiser's scratch", "update") == ALL * 4
    assert held(fused, "optimiser's scratch", "update") == 0
    assert plain.peaks["update"] - fused.peaks["update"] == ALL * 4


def test_image_features_by_hand():
    """1536 x 2 bytes an image token; the reference's of 600 questions, those of 900 + 100 in the test."""
    image = 512 * 1536 * 2
    names = {"sampling": 600, "training": 600, "evaluation": 600}
    trained = planned(PAPER)
    assert {phase: held(trained, "image features", phase) / image for phase in names} == names
    without = planned(PAPER, "method.beta=0")
    assert held(without, "image features") == 0
    frozen = planned(PAPER, "peft=language_model")  # one store for all phases, up to its limit
    assert (
        held(frozen, "image features")
        == held(without, "image features", "evaluation")
        == 2**30
        < 1000 * image
    )
    unknown = planned(PAPER, "peft=language_model", "data=omnimedvqa")
    assert held(unknown, "image features") == 2**30


def test_every_process_loads_the_weights():
    assert planned(PAPER).host_memory == ALL * 2
    assert planned(PAPER, "trainer=ddp", "trainer.devices=4").host_memory == 4 * ALL * 2


def test_checkpoints_by_hand():
    """Weights in bf16, their fp32 copies and two moments; under FSDP the weights are their own copies."""
    assert planned(PAPER).checkpoints == (ALL * (2 + 4 + 8), ALL * 2)
    assert planned(PAPER, "trainer=fsdp", "trainer.devices=2").checkpoints == (ALL * (4 + 8), ALL * 4)


def test_optimisers():
    eight = planned(PAPER, "optimizer=adamw_8bit")
    assert held(eight, "optimiser's moments") == pytest.approx(ALL * 2 * (1 + 4 / 256), rel=1e-3)
    assert held(planned(PAPER, "optimizer=sgd"), "optimiser's moments") == 0


def test_fp32_needs_no_master_copies():
    made = planned(PAPER, "model.recipe.dtype=float32")
    assert held(made, "weights") == held(made, "gradients") == ALL * 4
    assert held(made, "fp32 master copies") == 0


@pytest.mark.parametrize("devices", [2, 4])
def test_fsdp_splits(devices):
    made = planned(PAPER, "trainer=fsdp", f"trainer.devices={devices}")
    assert held(made, "weights") == ALL * 4 / devices
    assert held(made, "optimiser's moments") == ALL * 8 / devices
    assert held(made, "gradients") == ALL * 4 / devices
    assert held(made, "fp32 master copies") == 0
    assert held(made, "full sampling model") == held(made, "reference") == ALL * 2
    assert made.workload.prompts == 4 // devices


def test_ddp_copies():
    made = planned(PAPER, "trainer=ddp", "trainer.devices=2")
    assert held(made, "optimiser's moments") == ALL * 8
    assert held(made, "DDP's gradient buckets") == ALL * 2
