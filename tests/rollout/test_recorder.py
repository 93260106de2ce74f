"""Captured decoding steps, as on a GPU: addresses, memory, shapes, and the check of replays."""

import functools
import itertools
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tape
import torch
from lightning import Trainer, seed_everything
from models import random_model, stopping
from peft import LoraConfig
from torch.multiprocessing.reductions import StorageWeakRef
from training import RECIPE, data_of, module_of, phantoms

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.policy.forward.decoding import CacheShape, KVCache
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.recorder import MOST, Recorder, compiled
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

KEY = NoiseKey(seed=3, step=5)
GROUP = Sampling(group_size=4, max_tokens=16)
GREEDY = Sampling(group_size=1, max_tokens=16, temperature=0.0)


ADAPTER = Tuning("adapter", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def move(module):
    """Give every weight other memory, as ``module.cpu()`` and the way back to a GPU do."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone()
    return module


def same(one, other):
    assert one.texts == other.texts
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.logprobs[one.mask], other.logprobs[other.mask], rtol=0, atol=1e-5)


def run(folder, engine, tuning):
    """Validate, fit, validate and test, as run.py does."""
    seed_everything(0, verbose=False)
    policy = load_policy("embedded", RECIPE, tuning=tuning)
    module = module_of(GRPO, policy, engine=engine, micro_batch=2)
    data = data_of(policy, phantoms(), controls=("image", "blank"))
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off += ("inference_mode", "use_distributed_sampler", "num_sanity_val_steps")
    short = {"max_steps": 2, "limit_val_batches": 1, "limit_test_batches": 1, "default_root_dir": folder}
    trainer = Trainer(accelerator="cpu", devices=1, **dict.fromkeys(off, False), **short)
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    return module


class TestAddresses:
    @pytest.mark.parametrize("kind", ["random_policy", "lora_policy", "lora_policy_3"])
    def test_several_rollouts_of_varied_lengths(self, kind, prompts_of, request):
        policy = stopping(request.getfixturevalue(kind))
        chosen = list(prompts_of(policy).values())
        recorded = SharedPrefixEngine(sync_every=4, capture=tape.capture)
        for step, take in enumerate((slice(None), slice(1, 3), slice(None, None, -1))):
            for sampling in (GROUP, GREEDY):
                key = NoiseKey(3, step)
                same(
                    recorded(policy, chosen[take], sampling, key),
                    SharedPrefixEngine(sync_every=4)(policy, chosen[take], sampling, key),
                )
        assert recorded.recorder.failure is None
        assert policy.counters["replays"] > 2 * policy.counters["captures"] > 0

    def test_weights_that_have_moved_are_captured_again(self, prompts, random_policy, encoder):
        policy, chosen = stopping(random_policy), list(prompts.values())
        recorded = SharedPrefixEngine(sync_every=4, capture=tape.capture)
        plain = recorded(policy, chosen, GROUP, KEY)
        captures = policy.counters["captures"]
        move(policy)
        same(recorded(policy, chosen, GROUP, KEY), plain)
        assert policy.counters["captures"] == 2 * captures
        assert recorded.recorder.failure is None

    @pytest.mark.parametrize("tuning", [None, ADAPTER], ids=["all", "adapter"])
    def test_of_validate_fit_validate_test(self, tuning, tmp_path, monkeypatch):
        """Lightning's strategies move the module to the host and back after each of them."""
        monkeypatch.setattr(GRPO, "cpu", move)
        runs = []
        for capture in (None, tape.capture):
            engine = SharedPrefixEngine(capture=capture)
            runs.append(run(tmp_path, engine, tuning))
            assert engine.recorder.failure is None
        plain, recorded = runs
        assert recorded.totals["captures"] > 0 == plain.totals["captures"]
        assert [p.text for p in recorded.predictions] == [p.text for p in plain.predictions]
        for one, other in zip(plain.policy.parameters(), recorded.policy.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


class Lengths(DecodingState):
    """Completions end at drawn lengths; no model runs."""

    clock = 0

    def admit(self, slots, prompts, keys):
        rows = (torch.tensor(slots)[:, None] * self.group_size + torch.arange(self.group_size)).flatten()
        self.keys[rows] = self.clock + keys - 1  # when they end

    def advance(self):
        self.clock += 1

    def read_ended(self):
        return self.keys[: self.rows] <= self.clock


class Shapes(Recorder):
    """Collects the shapes for which steps would be captured."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def step(self, state):
        self.seen.add((state.shape, state.prompts, state.group_size, state.window))
        state.advance()


def drawn(rng, prompts, group_size):
    """Prompts of 300 to 720 tokens; lengths log-normal around 170 of at most 512 tokens."""
    lengths = np.exp(rng.normal(math.log(170), 0.45, prompts * group_size)).clip(20, 512).astype(int)
    asked = [
        SimpleNamespace(ids=range(n), sample=SimpleNamespace(id="")) for n in rng.integers(300, 720, prompts)
    ]
    return asked, lengths, SimpleNamespace(completion_keys=lambda *_: torch.tensor(lengths))


@pytest.mark.usefixtures("unchecked")
class TestShapes:
    @pytest.mark.parametrize(("prompts", "group_size"), [(4, 4), (8, 8), (8, 16)])
    def test_three_hundred_steps_need_few_recordings(self, prompts, group_size, monkeypatch, random_policy):
        monkeypatch.setattr("medvlm_r1.rollout.recorder.DecodingState", Lengths)
        recorder, rng = Shapes(), np.random.default_rng(0)
        for _ in range(300):
            asked, _, key = drawn(rng, prompts, group_size)
            sampling = Sampling(group_size=group_size, max_tokens=512)
            SharedPrefixEngine(sync_every=16)._decode(random_policy, asked, sampling, key, recorder)
        assert 4 < len(recorder.seen) <= 24
        for _ in range(10):  # validations
            asked, _, key = drawn(rng, 100, 1)
            SharedPrefixEngine()._decode(random_policy, asked, Sampling(max_tokens=512), key, recorder)
        assert len(recorder.seen) <= MOST
        largest = CacheShape(128, 1, 768, 512)  # of validation
        assert recorder.memory_bytes == 4 * KVCache.size(random_policy.model.config, largest)

    @pytest.mark.parametrize(("answers", "share"), [(5, 1.15), (2, 1.35)])
    def test_evaluation_decodes_few_rows_in_vain(self, answers, share, monkeypatch, random_policy):
        """900 questions under five controls or two, 64 questions a batch."""
        monkeypatch.setattr("medvlm_r1.rollout.recorder.DecodingState", Lengths)
        recorder, rng, tokens = Shapes(), np.random.default_rng(0), 0
        engine = SharedPrefixEngine()
        random_policy.counters.clear()
        for questions in [64] * 14 + [4]:
            asked, lengths, key = drawn(rng, answers * questions, 1)
            engine._decode(random_policy, asked, Sampling(max_tokens=512), key, recorder)
            tokens += lengths.sum()
        assert random_policy.counters["decode_rows"] <= share * tokens
        assert len(recorder.seen) <= 24

    def test_a_limit_of_memory_makes_prompts_wait(self, prompts, random_policy):
        policy, chosen = stopping(random_policy), list(prompts.values())
        one = CacheShape(1, 4, 256, 16)
        gigabytes = 2.5 * 4 * KVCache.size(policy.model.config, one) / 1e9
        engine = SharedPrefixEngine(sync_every=4, capture=tape.capture, max_memory_gb=gigabytes)
        same(engine(policy, chosen, GROUP, KEY), SharedPrefixEngine()(policy, chosen, GROUP, KEY))
        assert engine.recorder.memory_bytes / 1e9 == pytest.approx(gigabytes * 2 / 2.5)

    def test_memory_can_be_freed_after_each_rollout(self, prompts, random_policy):
        engine = SharedPrefixEngine(capture=tape.capture, keep_memory=False)
        random_policy.counters.clear()
        engine(random_policy, [prompts["square"]], GROUP, KEY)
        assert engine.recorder.count == engine.recorder.memory_bytes == 0
        assert random_policy.counters["captures"] > 0

    def test_more_than_eight_shapes_can_be_compiled(self, prompts, random_policy):
        """torch compiles one function for at most eight shapes by default."""
        torch._dynamo.reset()

        engine = SharedPrefixEngine(sync_every=2, capture=functools.partial(compiled, backend="eager"))
        policy = stopping(random_policy)
        for count in itertools.count(1):
            engine(policy, list(prompts.values())[:count], GROUP, KEY)
            if policy.counters["captures"] > 8:
                break
        assert engine.recorder.failure is None


def faulty(fault, is_wrong):
    """A capture of steps whose replays, counted over all, are wrong where ``is_wrong``."""
    replays = itertools.count(1)

    def capture(step):
        def replay():
            step()
            if is_wrong(next(replays)):
                fault(step.__self__)

        return replay

    return capture


def wrong_token(state):
    state.latest[0] += 1
    state.tokens[0, state.steps[0]] += 1


def stale_key(state):
    """As if the step had not written the keys of one head."""
    rows = state.index[: state.rows]
    state.cache.suffix[-1, 0, rows, -1, state.steps[rows] - 1] = 0.0


def wrong_logprob(state):
    state.records[0, 0, state.steps[0]] -= 0.5


def unwritten(state):
    state.tokens[0, state.steps[0]] = state.policy.pad_id


def not_a_number(state):
    state.hidden[0] = torch.nan
    state.records[:, 0, state.steps[0]] = torch.nan


def every_hundredth(replay):
    return replay % 100 == 0


def all_but_the_first(replay):
    return replay > 1


class TestChecks:
    def keeps_right(self, engine, policy, prompts, caplog, rollouts=12):
        """Whether the engine's rollouts are right and the log has one warning."""
        chosen = list(prompts.values())
        with caplog.at_level(logging.WARNING, "medvlm_r1"):
            for step in range(rollouts):
                rollout = engine(policy, chosen, GROUP, NoiseKey(3, step))
                same(rollout, SharedPrefixEngine(sync_every=4)(policy, chosen, GROUP, NoiseKey(3, step)))
        assert engine.recorder.failure
        assert caplog.text.count("a captured decoding step failed") == 1
        assert engine.recorder.count == engine.recorder.memory_bytes == 0

    @pytest.mark.parametrize("fault", [wrong_token, stale_key, wrong_logprob, unwritten, not_a_number])
    def test_one_wrong_replay_in_a_hundred_is_found(self, fault, prompts, random_policy, caplog):
        engine = SharedPrefixEngine(sync_every=4, capture=faulty(fault, every_hundredth), record="verify")
        self.keeps_right(engine, random_policy, prompts, caplog)

    @pytest.mark.parametrize("fault", [wrong_token, stale_key])
    def test_replays_that_are_wrong_from_the_second_on_are_found(self, fault, prompts, random_policy, caplog):
        """As those over memory that was freed after the capture."""
        engine = SharedPrefixEngine(sync_every=4, capture=faulty(fault, all_but_the_first))
        self.keeps_right(engine, random_policy, prompts, caplog, rollouts=2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_head_with_small_keys_beside_one_with_huge_keys(self, dtype, prompts, encoder, caplog):
        """Keys of Qwen2 have biases of several hundred in some layers."""
        model = random_model(encoder).to(dtype)
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.bias.data[0] = 300.0
        policy = Policy(model, encoder)
        engine = SharedPrefixEngine(capture=faulty(stale_key, all_but_the_first), record="verify")
        engine(policy, [prompts["square"]], GROUP, KEY)
        assert engine.recorder.failure == "keys and values differ"
        right = SharedPrefixEngine(capture=tape.capture, record="verify")
        right(policy, [prompts["square"]], GROUP, KEY)
        assert right.recorder.failure is None

    def test_a_step_that_cannot_be_captured(self, prompts, random_policy, caplog):
        def capture(step):
            raise RuntimeError("operation not permitted when stream is capturing")

        self.keeps_right(SharedPrefixEngine(capture=capture), random_policy, prompts, caplog, rollouts=2)
        assert "(it cannot be captured: operation not permitted" in caplog.text

    def test_a_rank_without_recordings_counts_the_same(self, prompts, random_policy):
        """Ranks reduce their counters one by one, and must have the same names."""
        engine = SharedPrefixEngine(capture=faulty(wrong_token, all_but_the_first))
        names = []
        for _ in range(3):
            random_policy.counters.clear()
            engine(random_policy, [prompts["square"]], GROUP, KEY)
            names.append(random_policy.counters.take().keys())
        assert names[0] == names[1] == names[2]

    def test_memory_that_is_not_a_number_does_not_spread(self, prompts, random_policy):
        engine = SharedPrefixEngine(capture=tape.capture)
        first = engine(random_policy, [prompts["square"]], GROUP, KEY)
        engine.recorder._memory.fill_(torch.nan)
        same(engine(random_policy, [prompts["square"]], GROUP, KEY), first)
        assert engine.recorder.failure is None

    def test_an_interrupted_check_leaves_nothing(self, prompts, random_policy):
        def interrupt(state):
            raise KeyboardInterrupt

        engine = SharedPrefixEngine(capture=faulty(interrupt, all_but_the_first))
        with pytest.raises(KeyboardInterrupt):
            engine(random_policy, [prompts["square"]], GROUP, KEY)
        assert engine.recorder.count == engine.recorder.memory_bytes == 0

    def test_larger_memory_replaces_the_smaller(self, prompts, random_policy, monkeypatch):
        """The two would not fit beside each other."""
        engine = SharedPrefixEngine(capture=tape.capture)
        engine(random_policy, [prompts["square"]], GROUP, KEY)
        held, zeros = StorageWeakRef(engine.recorder._memory.untyped_storage()), torch.zeros

        def allocate(*size, **options):
            if options.get("dtype") == random_policy.model.dtype and len(size) == 1:
                assert held.expired()
            return zeros(*size, **options)

        monkeypatch.setattr(torch, "zeros", allocate)
        engine(random_policy, list(prompts.values()), GROUP, KEY)
        assert held.expired()

    def test_what_checks_cost_is_counted(self, prompts, random_policy):
        engine = SharedPrefixEngine(capture=tape.capture)
        random_policy.counters.clear()
        engine(random_policy, [prompts["square"]], GROUP, KEY)
        assert 0 < random_policy.counters["seconds_check"] < 60
        assert random_policy.counters["replays"] == GROUP.max_tokens - 1

    def test_off_captures_nothing(self, prompts, random_policy):
        engine = SharedPrefixEngine(capture=tape.capture, record="off")
        random_policy.counters.clear()
        engine(random_policy, [prompts["square"]], GROUP, KEY)
        assert random_policy.counters["captures"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_rows": 0}, "rollout.max_rows is 0: it must be at least 1"),
        ({"max_memory_gb": 0}, "rollout.max_memory_gb is 0: it must be above 0"),
        ({"record": "on"}, "rollout.record is 'on': use auto, verify or off"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SharedPrefixEngine(**wrong)
