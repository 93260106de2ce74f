"""Fixtures of several test files: questions with images of different sizes, models, checkpoints on disk."""

import atexit
import functools
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import command
import jaxtyping
import numpy as np
import pytest
import torch
import training
from checkpoints import write
from hypothesis import settings
from lightning import Trainer
from models import Noise, encoder_for, random_model
from peft import LoraConfig, get_peft_model
from PIL import Image
from real_vllm import vllm, vllm_server  # noqa: F401
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate import statistics
from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.loading import resolve
from medvlm_r1.policy.policy import Policy
from medvlm_r1.prompts import PromptStyle

# Data sets that tests convert, also in other processes, do not stay in the user's cache.
CONVERTED = tempfile.mkdtemp(prefix="medvlm_r1-tests-")
os.environ["HF_DATASETS_CACHE"] = CONVERTED
atexit.register(shutil.rmtree, CONVERTED, ignore_errors=True)

# Seeded, and without a clock: the suite runs on busy machines too.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.load_profile("suite")

TESTS = str(Path(__file__).parent)
# Files that take long without any of ``SLOW``: seconds of CPU, or processes that experiments start.
SLOW_FILES = ("test_real_size", "test_first_gpu_day", "test_benchmark", "test_notebooks")
SLOW_FILES += ("test_many_completions", "test_predict", "test_export", "test_image_cache", "test_saving")
SLOW_FILES += ("test_plan", "test_plan_memory", "test_passes", "test_times")
# What a test that is ``slow`` calls, itself or in one of its fixtures and helpers.
SLOW = (command.python, command.run_here, training.fit, subprocess, Trainer)

# Each worker takes whole files: the long ones go first, so that none is left for the end.
LONGEST = (
    "strategies",
    "sweep",
    "resume",
    "training",
    "run",
    "real_size",
    "plan",
    "endpoint",
    "export",
    "policy",
    "predict",
    "fast_path",
    "recorder",
    "benchmark",
    "first_gpu_day",
    "vllm",
)


def is_slow(value, seen) -> bool:
    """Whether a function or class of the tests uses one of ``SLOW``, by the global names in its code."""
    value = getattr(value, "__func__", value)
    if any(value is slow for slow in SLOW):
        return True
    file = getattr(sys.modules.get(getattr(value, "__module__", None)), "__file__", None) or ""
    ours = file.startswith(TESTS) and (inspect.isfunction(value) or inspect.isclass(value))
    if not ours or value in seen:
        return False
    seen.add(value)
    if inspect.isclass(value):
        return any(is_slow(method, seen) for method in vars(value).values())
    codes = [value.__code__]
    for code in codes:  # with the functions inside
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    names = {name for code in codes for name in code.co_names}
    return any(is_slow(value.__globals__.get(name), seen) for name in names)


def pytest_collection_modifyitems(items):
    for item in items:
        fixtures = [defs[-1].func for defs in item._fixtureinfo.name2fixturedefs.values()]
        slow = item.path.stem in SLOW_FILES
        if slow or any(is_slow(function, set()) for function in (item.function, *fixtures)):
            item.add_marker("slow")
    place = {f"test_{name}": index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module")
def few_draws():
    """A tenth of the usual resamples, for tests of what is shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 1000)
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Types in signatures are not checked: for tests of the package's own errors about a wrong value."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def questions() -> dict[str, VQASample]:
    """Questions that differ in all that could be mixed up: images, their sizes, lengths and answers."""

    def question(name, images, text, options, answer):
        return VQASample(name, images, text, options, answer, "mri", "test", "test", name)

    two = (Noise(4, 140, 56), Noise(5, 56, 56))
    return {
        q.id: q
        for q in (
            question("square", (Noise(1, 112, 112),), "Which organ?", ("liver", "brain", "lung"), "B"),
            question(
                "wide",
                (Noise(2, 168, 112),),
                "What does the bright region on the left of this image show?",
                ("a cyst", "a solid mass"),
                "A",
            ),
            question("flat", (Noise(3, 140, 56),), "Is it normal?", ("no", "yes", "unsure", "both"), "D"),
            question("two", two, "Which of the two is brighter?", ("the first", "the second"), "B"),
            question("text", (), "Which organ pumps blood?", ("brain", "heart", "lung"), "C"),
        )
    }


@pytest.fixture(scope="session")
def short_style() -> PromptStyle:
    text = "{Question}\nGive the letter in <answer>...</answer>."
    return PromptStyle("short", train=text, evaluate=text)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The embedded model's tokenizer, with an image processor that leaves the pictures' sizes alone."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=168 * 112
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve.EMBEDDED, padding_side="left")
    return Encoder(tokenizer, processor, max_prompt_tokens=512)


@pytest.fixture(scope="session")
def prompts_of(questions, short_style):
    """The questions, encoded for a policy."""

    def encode(policy):
        samples = questions.items()
        return {name: policy.encoder.encode(sample, "train", short_style) for name, sample in samples}

    return encode


@pytest.fixture(scope="session")
def prompts(random_policy, prompts_of):
    """The questions, encoded for Qwen2-VL and Qwen2.5-VL."""
    return prompts_of(random_policy)


@pytest.fixture(scope="session")
def policy_of(encoder):
    """Random policies by family. All tests share them: none may change one."""

    @functools.cache
    def policy(family="qwen2_vl", tied=True):
        own = encoder_for(encoder, family)
        return Policy(random_model(own, tied, family), own)

    return policy


@pytest.fixture(scope="session")
def random_policy(policy_of) -> Policy:
    """Shared by all tests: none may change it."""
    return policy_of()


@pytest.fixture(scope="session")
def untied_policy(policy_of) -> Policy:
    """As ``random_policy``, with an output matrix of its own. None may change it."""
    return policy_of(tied=False)


@pytest.fixture(scope="session")
def policy_2_5(policy_of) -> Policy:
    """As ``random_policy``, of the Qwen2.5-VL family. None may change it."""
    return policy_of("qwen2_5_vl")


@pytest.fixture(scope="session")
def policy_3(policy_of) -> Policy:
    """As ``random_policy``, of the Qwen3-VL family. None may change it."""
    return policy_of("qwen3_vl")


def adapted(encoder, family="qwen2_vl"):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    own = encoder_for(encoder, family)
    model = random_model(own, family=family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(model, config)
    return Policy(model.train(), own)


@pytest.fixture
def lora_policy(encoder) -> Policy:
    """An adapter that already does something, on the weights of ``random_policy``."""
    return adapted(encoder)


@pytest.fixture
def lora_policy_3(encoder) -> Policy:
    """An adapter that already does something, on the weights of ``policy_3``."""
    return adapted(encoder, "qwen3_vl")


@pytest.fixture
def fresh_policy(encoder) -> Policy:
    """A ``random_policy`` of one's own, to train."""
    return Policy(random_model(encoder), encoder)


@pytest.fixture
def pictures(tmp_path):
    """A folder with ten different pictures, ``images/0.png`` to ``images/9.png``."""
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(noise.integers(0, 255, (56, 56), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the embedded model, to damage."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(resolve.EMBEDDED, folder, ignore=shutil.ignore_patterns("__*", "*.py"))
    return folder


@pytest.fixture
def sharded(checkpoint):
    """The same in two shards, as large models come."""
    tensors = load_file(checkpoint / "model.safetensors")
    names = list(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, checkpoint / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: s for s, held in shards.items() for name in held}}
    write(checkpoint / "model.safetensors.index.json", index)
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty cache, and nobody at the hub's address."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache
