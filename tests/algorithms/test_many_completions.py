"""Ten thousand completions through every prompt's parser and every reward of conf/."""

import random

import pytest
import torch
from command import ROOT
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_rewards import HACKS
from training import RECIPE

from medvlm_r1.data.sample import VQASample
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

PROMPTS = ["medvlm_r1", "medvlm_r1_simple"]  # answer tags, and none: they read alike otherwise
CLOSED = sorted(path.stem for path in (ROOT / "conf/reward").glob("*.yaml") if path.stem != "open")
RANGES = {"format": {0.0, 1.0}, "accuracy": {0.0, 0.5, 1.0}}
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<THINK>", "</ answer >", "<answer", "think>", ":"]
PIECES += [
    "A",
    "B",
    "C",
    "D",
    "J",
    "a",
    "b)",
    "(C)",
    "A, B, C, D",
    "the answer is",
    "T1",
    "\n",
    "  ",
    "\t",
    ".",
]
PIECES += ["\\boxed{A}", "**B**", "```", "\0", "\u200b", "\ufeff", "é", "中", "🧠", "\ud800", "\r\n", "%s"]
OPEN = VQASample("o", (), "What is it?", (), "left kidney", "mri", "t", "s", "g")


def of(group, option):
    return instantiate(OmegaConf.load(ROOT / f"conf/{group}/{option}.yaml"))


@pytest.fixture(scope="module")
def questions():
    return list(PhantomSource("mri", 50, "train"))


@pytest.fixture(scope="module")
def texts():
    """Seeded: pieces of the format in any order, some long, some stuffed with one piece."""
    draw = random.Random(0)
    made = ["".join(draw.choices(PIECES, k=draw.randint(0, 40))) for _ in range(7500)]
    made += ["".join(map(chr, draw.choices(range(0x20, 0x3000), k=draw.randint(1, 80)))) for _ in range(2000)]
    made += [draw.choice(PIECES) * draw.randint(1, 200) for _ in range(498)]
    return [*made, "<answer>" * 20_000, "<think>" * 20_000 + "</think>" * 20_000]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ten_thousand_texts(prompt, texts, questions):
    style = of("prompt", prompt)
    assert len(texts) == 10_000
    samples = [questions[k % len(questions)] for k in range(len(texts))]
    answers = [style.parse(text, sample) for text, sample in zip(texts, samples, strict=True)]
    for reward in CLOSED:
        table = of("reward", reward).score(answers, samples)
        for name, values in table.terms.items():
            assert set(values.tolist()) <= RANGES[name], (reward, name)
        assert 0 <= table.total.min() <= table.total.max() <= sum(table.weights.values())
    some = answers[::4]  # the overlap of words takes its time
    found = of("reward", "open").score(some, [OPEN] * len(some))
    for values in found.terms.values():
        assert torch.isfinite(values).all()
        assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize("reward", CLOSED)
def test_hacks_pay_no_accuracy(reward, questions):
    style, rewards = of("prompt", "medvlm_r1"), of("reward", reward)
    for sample in questions[:8]:
        answers = [style.parse(text.replace("{gold}", sample.answer), sample) for text in HACKS.values()]
        paid = rewards.score(answers, [sample] * len(answers)).terms["accuracy"]
        assert not paid.any(), [name for name, value in zip(HACKS, paid, strict=True) if value]


@pytest.mark.parametrize(("temperature", "different"), [(1.0, 20), (4.0, 400)])
def test_completions_of_the_embedded_model(temperature, different, questions):
    """Its own, near and far from what it was trained to say."""
    style, policy = of("prompt", "medvlm_r1"), load_policy("embedded", RECIPE)
    prompts = [policy.encoder.encode(sample, "train", style) for sample in questions[:10]]
    sampling = Sampling(group_size=50, max_tokens=48, temperature=temperature)
    rollout = SharedPrefixEngine()(policy, prompts, sampling, NoiseKey(seed=0, step=0))
    samples = [sample for sample in questions[:10] for _ in range(50)]
    answers = [style.parse(text, sample) for text, sample in zip(rollout.texts, samples, strict=True)]
    table = of("reward", "medvlm_r1").score(answers, samples)
    assert len(set(rollout.texts)) > different
    for name, values in table.terms.items():
        assert set(values.tolist()) <= RANGES[name]
