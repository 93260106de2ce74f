"""A run folder with thousands of traces, written by the project's own writers from made-up completions."""

import dataclasses
import json
import random
from functools import partial
from pathlib import Path

import torch

from medvlm_r1.algorithms.advantages import GroupRelative
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.callbacks.rollout_rows import rollout_rows, write_rows
from medvlm_r1.data.perturbation import PLAIN, Perturbation
from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate.predictions import Prediction, summarise, write_predictions
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.rewards import Rewards, letter_accuracy, think_format
from medvlm_r1.rollout.engine import Rollout

ORGANS = ("liver", "spleen", "kidney", "heart", "lung", "bladder", "pancreas", "stomach")
SIGNS = ("bright", "dark", "round", "ill-defined", "calcified", "oedematous", "symmetric", "enhancing")
TYPES = ("Anatomy Identification", "Disease Diagnosis", "Lesion Grading")
SETS = ("mri", "ct", "xray")
PROMPT = PromptStyle(name="medvlm_r1", train="{Question}", evaluate="{Question}", layout="lines")
REWARDS = Rewards({"format": think_format, "accuracy": letter_accuracy}, {"format": 1.0, "accuracy": 1.0})


def sample(rng: random.Random, modality: str, phase: str, number: int) -> VQASample:
    name = f"{modality}-{phase}-{number:05d}"
    options = tuple(rng.sample(ORGANS, 4))
    asked = f"Which organ shows the {rng.choice(SIGNS)} lesion of case {number}?"
    return VQASample(
        name, (), asked, options, rng.choice("ABCD"), modality, rng.choice(TYPES), "made up", name
    )


def completion(rng: random.Random, question: VQASample) -> str:
    """About 400 characters of reasoning and a letter, right more often than by chance."""
    letter = question.answer if rng.random() < 0.5 else rng.choice("ABCD")
    pairs = [(rng.choice(ORGANS), rng.choice(SIGNS)) for _ in range(8)]
    seen = " ".join(f"The {organ} is {sign}, {rng.random():.6f} apart." for organ, sign in pairs)
    return f"<think>{seen}</think>\n<answer>{letter}</answer>" if rng.random() < 0.9 else seen


def write_large_run(folder: Path, steps: int = 500, prompts: int = 10, size: int = 4, n: int = 300) -> Path:
    """``steps * prompts`` groups of ``size`` completions; ``n`` questions a test set under two controls."""
    rng = random.Random(7)
    for step in range(steps):
        samples = [sample(rng, "mri", "train", step * prompts + k) for k in range(prompts)]
        write_rows(folder / "rollouts" / f"step-{step}.jsonl", drawn(rng, step, samples, size))
    plain = [
        Prediction.from_answer(
            Perturbation(PLAIN, asked),
            PROMPT.parse(completion(rng, asked), asked),
            90,
            False,
            folder.name,
            steps,
            name,
        )
        for name in SETS
        for asked in (sample(rng, name, "test", k) for k in range(n))
    ]
    blank = [dataclasses.replace(p, control="blank") for p in plain]
    write_predictions(folder / "predictions.jsonl", [*plain, *blank])
    run = {"name": folder.name, "experiment": "grpo_600", "method": "grpo", "seed": 0, "trained_on": ["mri"]}
    metrics = {"run": run | {"steps": steps}, **summarise(plain), "audit": {}, "counters": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def drawn(rng: random.Random, step: int, samples: list[VQASample], size: int) -> list[dict]:
    """Rows of one step, scored and compared within their groups as training does it."""
    asked = [question for question in samples for _ in range(size)]
    answers = [PROMPT.parse(completion(rng, question), question) for question in asked]
    table = REWARDS.score(answers, asked)
    tokens = torch.ones(len(asked), 90, dtype=torch.long)
    rollout = partial(Rollout, tokens=tokens, mask=tokens.bool(), truncated=torch.zeros(len(asked)).bool())
    blanks = torch.zeros(tokens.shape)
    texts = [answer.text for answer in answers]
    advantages = GroupRelative().relative(table.total, size)
    drawn = rollout(logprobs=blanks, kept_mass=blanks + 1, entropy=blanks, texts=texts)
    return rollout_rows(step, Trajectory(samples, drawn, asked, answers, table, advantages=advantages))
