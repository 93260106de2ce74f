"""Rollouts from a real vLLM server: the trainer's log-probabilities, with the weights of the last sync."""

import copy
import json
import os
import signal
import subprocess
import threading
import time

import pytest
import torch
from models import stopping
from peft import LoraConfig
from torch import distributed
from training import FORMAT, PROMPT, RECIPE, fit

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.callbacks.alarms import Alarms
from medvlm_r1.data.splits import Questions
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine
from medvlm_r1.rollout.vllm import VLLMEngine
from medvlm_r1.rollout.vllm_weights import nccl_init, nccl_update, sampling_weights
from medvlm_r1.runs.vllm_server import VLLMServerError, vllm_python

KEY = NoiseKey(seed=3, step=5)
GROUP = Sampling(group_size=4, max_tokens=16)
GREEDY = Sampling(max_tokens=16, temperature=0.0)
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ".*language_model.*(q_proj|down_proj)"}
TINY_LR = 1e-4  # of conf/model/tiny.yaml

pytestmark = pytest.mark.skipif(
    not vllm_python().exists(), reason="needs vLLM in an environment of its own: make vllm"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The engine that starts the server of this file, and ends it."""
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    engine = VLLMEngine(max_rows=64, max_completion_tokens=32, log=str(log))
    engine.update_weights(load_policy("embedded", RECIPE))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def connected(engine):
    """Makes further engines of the same server."""
    return lambda kind=VLLMEngine: kind(url=[engine.client.url], timeout=60.0)


@pytest.fixture
def policy():
    return load_policy("embedded", RECIPE)


def difference(policy, prompts, rollout, temperature=1.0):
    """Largest absolute difference between the trainer's log-probabilities and the recorded ones."""
    with torch.no_grad():
        batch = collate(prompts, policy.pad_id, policy.device)
        trained = policy.logprobs(batch, rollout.tokens, rollout.mask, temperature)
    return (trained - rollout.logprobs)[rollout.mask].abs().max().item()


def scale(policy, part, factor=1.5):
    with torch.no_grad():
        for name, parameter in policy.sampling_model.named_parameters():
            if part in name:
                parameter.mul_(factor)
    policy.sync_sampling_model()


class TestCompletions:
    def test_greedy_texts_are_those_of_the_engine_in_this_process(self, engine, policy, prompts):
        rollout, own = (
            e(policy, list(prompts.values()), GREEDY, KEY) for e in (engine, SharedPrefixEngine())
        )
        assert rollout.texts == own.texts
        torch.testing.assert_close(rollout.logprobs, own.logprobs, rtol=0, atol=1e-4)
        assert torch.equal(rollout.entropy, own.entropy)

    @pytest.mark.parametrize("temperature", [0.7, 2.0])
    def test_logprobs_are_the_trainers(self, temperature, engine, policy, prompts):
        """One, two and no images per prompt, of different sizes; completions of different lengths."""
        policy, chosen = stopping(policy), list(prompts.values())
        scale(policy, "visual", 2.0)  # or pictures hardly move the answers
        sampling = Sampling(group_size=8, max_tokens=16, temperature=temperature)
        rollout = engine(policy, chosen, sampling, KEY)
        assert difference(policy, chosen, rollout, temperature) < 1e-4
        assert len(rollout.lengths.unique()) > 1
        assert len(set(rollout.texts)) > 3
        assert not policy.banned[rollout.tokens].any()
        assert torch.equal(rollout.entropy[rollout.mask], -rollout.logprobs[rollout.mask])
        assert (rollout.kept_mass == 1).all()

    def test_a_seed_belongs_to_a_question_and_a_step(self, engine, policy, prompts):
        chosen = [prompts["square"], prompts["two"]]
        first, again, later = (engine(policy, chosen, GROUP, NoiseKey(3, step)) for step in (5, 5, 6))
        assert first.texts == again.texts != later.texts
        alone = engine(policy, chosen[1:], GROUP, KEY)
        assert alone.texts == first.texts[4:]

    @pytest.mark.parametrize(
        ("sampling", "error"),
        [
            (Sampling(top_p=0.9), r"method.sampling.top_p=1 and method.sampling.top_k=0, or take rollout"),
            (Sampling(group_size=65), r"65 completions .* --max-num-seqs 64: raise rollout.max_rows"),
            (
                Sampling(max_tokens=600),
                r"600 of completion exceed .*raise rollout.max_completion_tokens",
            ),
        ],
    )
    def test_what_the_server_cannot_do_is_one_line(self, sampling, error, engine, policy, prompts):
        with pytest.raises((ValueError, VLLMServerError), match=error):
            engine(policy, list(prompts.values()), sampling, KEY)


class TestWeights:
    @pytest.mark.parametrize(
        "part", ["embed_tokens", "k_proj.bias", "down_proj", "language_model.norm", "visual.blocks", "merger"]
    )
    def test_an_update_of_each_part_reaches_cached_prompts_and_images(self, part, engine, policy, prompts):
        chosen = [prompts["square"], prompts["wide"]]
        before = engine(policy, chosen, GROUP, KEY)
        scale(policy, part)
        after = engine(policy, chosen, GROUP, KEY)
        assert difference(policy, chosen, after) < 1e-4
        assert difference(policy, chosen, before) > 1e-3

    def test_weights_are_those_of_the_last_sync(self, engine, policy, prompts):
        before = engine(policy, [prompts["text"]], GREEDY, KEY)
        with torch.no_grad():
            policy.head_weight.mul_(1.1)
        assert torch.equal(engine(policy, [prompts["text"]], GREEDY, KEY).logprobs, before.logprobs)
        policy.sync_sampling_model()
        assert difference(policy, [prompts["text"]], engine(policy, [prompts["text"]], GREEDY, KEY)) < 1e-4

    def test_an_adapter_is_merged_on_the_way_and_left_alone(self, engine, prompts):
        policy = load_policy("embedded", RECIPE, tuning=Tuning("adapter", LoraConfig(**LORA)))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        held = copy.deepcopy(policy.model.state_dict())
        rollout = engine(policy, [prompts["square"]], GROUP, KEY)
        assert difference(policy, [prompts["square"]], rollout) < 1e-4
        with policy.model.disable_adapter():
            assert difference(policy, [prompts["square"]], rollout) > 1e-2
        assert all(torch.equal(value, held[name]) for name, value in policy.model.state_dict().items())
        names = [name for name, _ in sampling_weights(policy, everything=False)]
        assert len(names) == len(set(names))
        assert not any("visual" in name or "lora" in name for name in names)

    def test_another_run_that_sends_its_weights_is_noticed(self, engine, connected, policy, prompts):
        engine(policy, [prompts["text"]], GREEDY, KEY)
        connected()(policy, [prompts["text"]], GREEDY, KEY)
        with pytest.raises(VLLMServerError, match=r"text: weights .* sampled instead of .*: the server was"):
            engine(policy, [prompts["text"]], GREEDY, KEY)


FEW = Questions(
    PhantomSource("mri", 4, "train"),
    PhantomSource("mri", 1, "validation"),
    {"mri": PhantomSource("mri", 1, "test")},
)


def of_two_ranks(rank, folder, url):
    """The process of one rank: two updates, and after each the difference of sampler and trainer."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    policy = load_policy("embedded", RECIPE)
    engine = VLLMEngine(url=[url], timeout=60.0)
    prompt = policy.encoder.encode(PhantomSource("mri", 4, "train")[rank], "train", PROMPT)
    differences = []
    for _ in range(2):
        scale(policy, "visual")
        engine.update_weights(policy)
        differences.append(difference(policy, [prompt], engine(policy, [prompt], GROUP, NoiseKey(0, 0))))
    (folder / f"{rank}.json").write_text(json.dumps(differences))
    distributed.destroy_process_group()


class TestRanks:
    def test_two_ranks_share_a_server(self, engine, tmp_path):
        torch.multiprocessing.spawn(of_two_ranks, (tmp_path, engine.client.url), nprocs=2)
        for rank in range(2):
            assert max(json.loads((tmp_path / f"{rank}.json").read_text())) < 1e-4


class LostUpdate(VLLMEngine):
    """Loses the second update, and each later one."""

    def _send(self, policy, everything):
        if everything:
            super()._send(policy, everything)


class StaleCaches(VLLMEngine):
    """Keeps what vLLM computed from old weights."""

    def _reset_caches(self):
        pass


def train(folder, engine, steps=2, lr=TINY_LR, **settings):
    """GRPO on four questions; returns the alarms, and each step's difference of sampler and trainer."""
    found = []

    class Differences(Alarms):
        def on_train_batch_end(self, trainer, *arguments):
            found.append(float(trainer.callback_metrics["train/sampling_logp_difference_p99"]))
            super().on_train_batch_end(trainer, *arguments)

    settings = {"rewards": FORMAT, "lr": lr, **settings}
    fit(GRPO, folder, steps, questions=FEW, engine=engine, trainer={"callbacks": [Differences()]}, **settings)
    path = folder / "alarms.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["alarm"] for row in rows}, found


class TestTraining:
    def test_sampler_and_trainer_agree_in_every_step(self, connected, tmp_path):
        alarms, differences = train(tmp_path, connected(), loss=PolicyLoss(tis_cap=2.0))
        assert "sampling_logp_difference" not in alarms
        assert max(differences) < 1e-4

    @pytest.mark.parametrize("broken", [LostUpdate, StaleCaches])
    def test_the_alarm_sees_old_weights_and_old_features(self, broken, connected, tmp_path):
        alarms, differences = train(tmp_path, connected(broken))
        assert "sampling_logp_difference" in alarms
        assert differences[0] < 1e-4 < 1e-3 < max(differences)


class TestNCCL:
    def test_vllm_accepts_the_requests(self):
        """vLLM's own types read them; the broadcasts need a GPU."""
        shard = {
            "model.visual.merger.ln_q.weight": torch.zeros(4, dtype=torch.bfloat16),
            "b": torch.zeros(2, 3),
        }
        bodies = nccl_init(bytes(range(128)), world_size=3), nccl_update(shard)
        code = (
            "import json, sys\n"
            "from vllm.distributed.weight_transfer import nccl_engine as n\n"
            "init, update = json.load(sys.stdin)\n"
            "init = n.NCCLWeightTransferInitInfo(**init)\n"
            "update = n.NCCLWeightTransferUpdateInfo(**update)\n"
            "print(list(init.nccl_unique_id_bytes), init.rank_offset, update.dtype_names, update.shapes)"
        )
        command = [vllm_python(), "-c", code]
        done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, check=True)
        expected = f"{list(range(128))} 1 ['bfloat16', 'float32'] [[4], [2, 3]]"
        assert done.stdout.splitlines()[-1] == expected

    def test_it_needs_servers_on_other_devices(self):
        with pytest.raises(ValueError, match=r"rollout.transfer=nccl needs rollout.url"):
            VLLMEngine(transfer="nccl")


class TestFailures:
    def test_a_server_that_dies_within_a_step_is_one_clear_error(self, engine, policy, prompts):
        """The last test of the file: it ends the server."""
        long = Sampling(group_size=64, max_tokens=400)
        policy = stopping(policy)
        policy.eos_ids = [policy.banned_ids[0]]  # never sampled

        def kill():
            time.sleep(1)
            os.killpg(engine._server._process.pid, signal.SIGKILL)

        threading.Thread(target=kill).start()
        with pytest.raises(VLLMServerError, match=r"the vLLM server has stopped .*vllm.log.*resume=auto"):
            engine(policy, [prompts["text"]] * 8, long, KEY)
