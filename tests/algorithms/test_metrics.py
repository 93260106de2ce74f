"""The metrics of a training step, worked out by hand."""

import csv
import dataclasses
import math

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from training import PROMPT, fit, phantoms

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.metrics import step_metrics
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.rewards import RewardTable
from medvlm_r1.rollout.engine import Rollout
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

UPDATE = dict.fromkeys(("loss", "grad_norm", "kl", "clipped", "importance_ratio"), torch.tensor(0.0))
UPDATE |= {"tokens": torch.tensor(6.0), "sampling_logp_difference": torch.zeros(6)}


def step(advantages):
    """Two prompts with two completions each: one right and one wrong answer, then two wrong answers."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]).bool()
    nats = torch.tensor([[0.5, 1.0, 1.5], [3.0, 9.0, 9.0], [0.0, 9.0, 9.0], [0.0, 9.0, 9.0]])
    zeros, (first, second) = torch.zeros(4, 3), [phantoms().train[i] for i in (0, 1)]
    samples = [first, first, second, second]
    texts = [f"<answer>{first.answer}</answer>", *["<answer>none</answer>"] * 3]
    answers = [PROMPT.parse(text, sample) for text, sample in zip(texts, samples, strict=True)]
    terms = {"accuracy": torch.tensor([1.0, 0.0, 0.0, 0.0]), "format": torch.tensor([1.0, 0.5, 1.0, 1.0])}
    rewards = RewardTable(terms, {"accuracy": 2.0, "format": 1.0})
    rollout = Rollout(mask.long(), mask, zeros, zeros, nats, texts, torch.zeros(4).bool())
    trajectory = Trajectory([None, None], rollout, samples, answers, rewards, advantages=advantages)
    metrics = step_metrics(trajectory, trajectory, [UPDATE])
    return {name: value.float().mean().item() for name, value in metrics.items()}


@pytest.mark.usefixtures("unchecked")  # there are no encoded prompts
def test_rewards_entropy_and_advantages_of_a_step():
    got = step(advantages=torch.tensor([0.7, -0.7, 0.0, 0.0]))
    assert got["entropy"] == pytest.approx((0.5 + 1.0 + 1.5 + 3.0) / 6)  # of the tokens that were sampled
    assert got["reward_std"] == pytest.approx((2.5 / math.sqrt(2) + 0) / 2)  # totals 3 and 0.5; 1 and 1
    assert got["frac_zero_advantage"] == 0.5
    assert got["advantage_abs"] == pytest.approx(0.35)
    assert (got["reward_accuracy_right"], got["reward_accuracy_wrong"]) == (1, 0)
    assert (got["reward_format_right"], got["reward_format_wrong"]) == (1, pytest.approx(2.5 / 3))


@pytest.mark.usefixtures("unchecked")  # there are no encoded prompts
def test_advantages_by_token_count_by_token():
    advantages = torch.tensor([[1.0, -2.0, 1.0], [4.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert step(advantages)["advantage_abs"] == pytest.approx(8 / 6)


@dataclasses.dataclass(frozen=True)
class Scripted:
    """All answers of the first step are right, and all others wrong."""

    def __call__(self, policy, prompts, sampling, key):
        rollout = SharedPrefixEngine()(policy, prompts, sampling, key)
        size = sampling.group_size
        texts = [f"<answer>{p.sample.answer if key.step == 0 else ''}</answer>" for p in prompts]
        return dataclasses.replace(rollout, texts=[text for text in texts for _ in range(size)])


class LongRun(Callback):
    """So many tokens before the first step that fp32 would round their number."""

    def on_train_start(self, trainer, module):
        module.seen["tokens"] += 2**40


def rows_of(folder, kind, **settings):
    logger = CSVLogger(folder, name="", version="")
    off = {"limit_val_batches": 0, "limit_test_batches": 0}
    off |= {"logger": logger, "log_every_n_steps": 1, "callbacks": [LongRun()]}
    module = fit(kind, folder, trainer=off, **settings)
    with (folder / "metrics.csv").open() as file:
        return module, list(csv.DictReader(file))


def test_a_metric_of_no_completion_is_absent_and_not_repeated(tmp_path):
    _, (first, second) = rows_of(tmp_path, GRPO, engine=Scripted())
    assert (float(first["train/reward_accuracy_right"]), first["train/reward_accuracy_wrong"]) == (1, "")
    assert (second["train/reward_accuracy_right"], float(second["train/reward_accuracy_wrong"])) == ("", 0)
    assert float(first["train/frac_zero_advantage"]) == 1
    assert float(first["train/reward_std"]) == float(first["train/advantage_abs"]) == 0


@pytest.mark.parametrize("kind", [GRPO, SFT])
def test_questions_tokens_and_seconds_of_a_run(kind, tmp_path):
    module, rows = rows_of(tmp_path, kind)
    data, encoder = module.trainer.datamodule, module.policy.encoder
    prompts = sum(len(encoder.encode(sample, "train", PROMPT).ids) for sample in data.questions.train)
    if kind is GRPO:
        completions = sum(round(float(row["train/tokens"]) * 16) for row in rows)
    else:
        completions = sum(round(float(row["train/loss_tokens"])) for row in rows)
    assert [float(row["train/questions_seen"]) for row in rows] == [4, 8]
    assert float(rows[-1]["train/tokens_seen"]) == 2**40 + prompts + completions
    assert float(rows[0]["timing/seconds_left"]) > float(rows[1]["timing/seconds_left"]) == 0
