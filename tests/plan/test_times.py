"""Operand bytes, kernels and seconds."""

import dataclasses
import shutil

import pytest
import torch
from counter import Step, count_step
from plans import ALL, PAPER, TOWER, planned

from medvlm_r1.plan.cards import CARDS
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.meta import Ledger
from medvlm_r1.plan.passes import Cost
from medvlm_r1.plan.plan import measure_model
from medvlm_r1.plan.rollouts import rollout_passes
from medvlm_r1.plan.times import Clock
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.loading.architecture import load_config, with_depth
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


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
    run = paper.workload
    meter = Meter(load_config(run.path), run.recipe, Tuning())

    def step(rows, sampling):
        return meter.decode(CacheShape(rows, 1, 512, 512), 256, sampling)

    few, many = step(2, run.answering), step(66, run.answering)
    weights = 2 * (ALL - TOWER)
    assert weights < few.traffic < 1.05 * weights
    assert few.launches == many.launches < 1100
    cache, logits = 28_672 * (512 + 256), 151_936 * 2
    assert cache + 2 * logits < (many.traffic - few.traffic) / 64 < 2 * cache + 2 * logits
    # one kernel draws the tokens; with top-p, torch goes over the vocabulary many times
    truncated = step(66, dataclasses.replace(run.sampling, group_size=1, top_p=0.9))
    assert truncated.launches > many.launches + 20
    assert truncated.traffic > many.traffic + 66 * 20 * logits


@pytest.mark.skipif(shutil.which("g++") is None, reason="fake CUDA tensors need g++ in a CPU build of torch")
@pytest.mark.usefixtures("unchecked")
def test_a_step_on_meta_has_the_kernels_and_bytes_of_one_on_fake_cuda_tensors(paper):
    run = paper.workload
    counted, _ = count_step(Step(8, 8, layers=2))
    meter = Meter(with_depth(load_config(run.path), 2, 1), run.recipe, Tuning())
    step = meter.decode(CacheShape(8, 8, 704, 512), 512, Sampling(8, 512))
    assert (step.launches, step.traffic) == (counted.launches, pytest.approx(counted.bytes, rel=1e-3))


def passes_of(made, prompts, images=1, sampling=None):
    inventory, run = measure_model(made.workload)[::-1], made.workload
    return rollout_passes(run, *inventory, sampling or run.answering, prompts, images)


def test_waiting_prompts_take_the_slots_of_those_that_end(paper):
    """320 prompts of 256 tokens on average in 128 slots, of which the host reads every 8 steps which end."""
    first, later, full, tail = passes_of(paper, 320, images=64)
    assert (first.count, first.recorded) == (128 / 16, False)
    assert later.count == 192 / 4  # 128 x 8 / 260 slots empty between two reads
    assert (full.count, full.recorded) == (192 / 128 * (256 + 4), True)
    assert (tail.count, tail.recorded) == (512, True)
    assert tail.cost.traffic < full.cost.traffic
    # rows x steps, with two thirds of the rows in the tail, against the tokens of the answers
    assert 320 * 256 < 128 * full.count + 86 * tail.count <= 1.15 * 320 * 256
    # a pass over four prompts reads one image, a pass over 16 reads four
    assert first.cost.flops == pytest.approx(4 * later.cost.flops, rel=0.01)


def test_prompts_that_all_have_a_slot_decode_to_the_limit(paper):
    run = paper.workload
    first, tail = passes_of(paper, run.prompts, run.prompts, run.sampling)
    assert first.count == 1
    assert (tail.count, tail.recorded) == (512, True)


def test_a_group_keeps_its_slot_until_its_longest_completion_ends(paper):
    sampling = dataclasses.replace(paper.workload.sampling, group_size=64)
    *_, full, tail = passes_of(paper, 4, 4, sampling)  # two prompts of 64 rows decode, two wait
    assert full.count == tail.count == 512


def test_evaluation_takes_a_third_of_a_batch_at_a_time(paper):
    """Against 16 rows that decode together until the last of them ends."""
    run = paper.workload
    clock = Clock(run, *measure_model(run)[::-1])
    engine = SharedPrefixEngine(max_rows=16)
    asked = run.questions
    alone = Clock(dataclasses.replace(run, engine=engine), *measure_model(run)[::-1])
    before = asked.evaluations / 16 * alone.rollout("evaluation", 16, run.answering, 16).seconds
    assert clock.evaluation() < before / 3


def test_seconds_by_hand(paper):
    """The slowest of operations, bytes and launches; a graph adds the start of each kernel."""
    clock = Clock(dataclasses.replace(paper.workload, card=CARDS["h100_80gb"]), None, None)
    assert clock.seconds(Cost(flops=989e12, traffic=1, launches=1)) == pytest.approx(1 / 0.4)
    assert clock.seconds(Cost(flops=1, traffic=3.35e12, launches=1)) == pytest.approx(1 / 0.7)
    assert clock.seconds(Cost(flops=1, traffic=1, launches=1e6)) == pytest.approx(9)
    assert clock.seconds(Cost(traffic=3.35e12, launches=1e6), recorded=True) == pytest.approx(1 / 0.7 + 1.3)


def test_training_is_bound_by_bandwidth():
    """8 completions of 512 tokens: over 360 GB move, which takes a little longer than the operations."""
    made = planned(PAPER, "model.recipe.group_size=8", "card=h100_80gb", timed=True)
    shape = made.workload.shape(1, 8, 512)
    meter = Meter(load_config(made.workload.path), made.workload.recipe, Tuning())
    cost, clock = meter.training(shape, True), Clock(made.workload, None, None)
    assert clock.seconds(cost) == pytest.approx(cost.traffic / (0.7 * 3.35e12))
    assert cost.traffic > 360e9
    assert 1 < clock.seconds(cost) / (cost.flops / (0.4 * 989e12)) < 1.2


def test_steps_of_another_engine_are_not_recorded(paper):
    plain = planned(PAPER, "rollout=reference", timed=True).step[0]
    assert plain.seconds >= 9e-6 * plain.launches
    assert plain.seconds > 2 * paper.step[0].seconds


def test_checkpoints_take_time(paper):
    """One every 25 steps of 300; at 1 GB/s."""
    assert paper.workload.checkpoints == 12
    assert paper.checkpoint_seconds == pytest.approx(12 * 14 * ALL / 1e9)
    assert paper.seconds == 300 * paper.step_seconds + paper.checkpoint_seconds + paper.evaluation_seconds
    none = planned(PAPER, "~callbacks", timed=True)
    assert none.checkpoint_seconds == 0
    assert none.seconds < paper.seconds


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
