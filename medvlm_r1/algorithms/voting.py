"""Majority vote and best of n: the starting weights sample several answers a question, and one counts.

Nothing is trained. They show what the tokens that GRPO spends on training reach at test time. All answers of
a question are sampled from one reading of its prompt, with the noise of the run's seed.

Departures:

1. Self-consistency (Wang et al. 2022, arXiv 2203.11171) breaks no ties; here a tie goes to the vote that
   reached its number first. A completion without a strict letter does not vote.
2. Best of n mostly ranks by a trained verifier (Cobbe et al. 2021, arXiv 2110.14168). Here the score needs
   neither the gold answer nor a further model: completions in the format come first, then the highest mean
   log-probability of the tokens, as sampled. A choice by the gold answer would be pass@n, an oracle.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.data.perturbation import Perturbation
from medvlm_r1.evaluate.predictions import Prediction
from medvlm_r1.evaluate.samples import best_of, follows, majority, vote_of
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.prompts import is_correct
from medvlm_r1.rollout.engine import Sampling

log = logging.getLogger("medvlm_r1")


class TokenBudgetError(ValueError):
    """``method.tokens`` does not pay for one answer a question."""


class Voting(VLMModule):
    """Samples n answers to every question of validation and test, under every control, and chooses one.

    Args:
        rule: ``majority_vote`` or ``best_of_n``.
        sampling: temperature, truncation and limit of a completion.
        n: answers per question, unless ``tokens`` is set.
        tokens: what n is computed from: tokens of all completions of the test questions without a control.
        shared: the arguments of :class:`~medvlm_r1.algorithms.base.VLMModule`.
    """

    def __init__(
        self,
        *,
        rule: Literal["majority_vote", "best_of_n"],
        sampling: Sampling,
        n: int = 16,
        tokens: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.check(rule, sampling, n, tokens)
        self.rule, self.sampling, self.tokens = rule, replace(sampling, group_size=n), tokens
        self._paid = tokens is None  # whether the group size is final

    @staticmethod
    def check(rule: str, sampling: Sampling, n: int = 16, tokens: int | None = None, **settings: Any) -> None:
        """Check settings that must go together; raises ``ValueError``. It needs no model."""
        if rule not in ("majority_vote", "best_of_n"):
            raise ValueError(f"method.rule is {rule!r}: use majority_vote or best_of_n")
        if n < 1 or (tokens is not None and tokens < 1):
            raise ValueError(f"method.n {n} and method.tokens {tokens} must be at least 1")
        if sampling.temperature == 0:
            raise ValueError(
                "method.sampling.temperature is 0, so all answers to a question would be equal: raise it, or "
                "take method=zero_shot"
            )

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._spend()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._spend()

    def _spend(self) -> None:
        """Compute n from the budget: one completion of each validation question measures the tokens."""
        if self._paid:
            return
        data, one = self.trainer.datamodule, replace(self.sampling, group_size=1)
        lengths = [
            length
            for prompts in data.val_dataloader()
            for length in self.engine(self.policy, prompts, one, self.noise_key).lengths.tolist()
        ]
        lengths = [length for share in self.gather_objects(lengths) for length in share]
        self.policy.counters.take()  # in no total
        mean, questions = sum(lengths) / len(lengths), sum(map(len, data.questions.test.values()))
        n = int(self.tokens / questions / mean)
        if n < 1:
            raise TokenBudgetError(
                f"method.tokens={self.tokens} is {self.tokens / questions:.1f} for each of {questions} test "
                f"questions, and an answer has {mean:.1f} (mean of {len(lengths)} validation questions): "
                f"give at least {math.ceil(mean * questions)}, or leave it out and set method.n"
            )
        log.info("%d answers to each of %d questions: an answer has %.1f tokens", n, questions, mean)
        self.sampling, self._paid = replace(self.sampling, group_size=n), True

    def choose(self, group: Sequence[dict[str, Any]]) -> int:
        """Index of the answer of a question that counts."""
        if self.rule == "majority_vote":
            return majority([answer["vote"] for answer in group])
        return best_of([a["in_format"] for a in group], [a["logprob"] for a in group])

    def evaluate(
        self, asked: Sequence[Perturbation], prompts: Sequence[EncodedPrompt], test_set: str
    ) -> tuple[list[Prediction], Tensor]:
        """Sample n answers and choose one: returns one prediction per question, and its total reward."""
        rollout = self.engine(self.policy, prompts, self.sampling, self.noise_key)
        samples, answers = self.parse(prompts, rollout.texts)
        lengths, cut = rollout.lengths.tolist(), rollout.truncated.tolist()
        logprobs = (torch.where(rollout.mask, rollout.logprobs, 0.0).sum(1) / rollout.lengths).tolist()
        sampled = [
            {
                "text": answer.text,
                "vote": vote_of(answer, sample),
                "correct": is_correct(answer, sample),
                "in_format": follows(self.prompt, answer),
                "logprob": logprob,
                "tokens": tokens,
                "truncated": at_limit,
            }
            for answer, sample, logprob, tokens, at_limit in zip(
                answers, samples, logprobs, lengths, cut, strict=True
            )
        ]
        n, rows, chosen = self.sampling.group_size, [], []
        for number, perturbation in enumerate(asked):
            group = sampled[number * n : (number + 1) * n]
            place = self.choose(group)
            i = number * n + place
            row = Prediction.from_answer(
                perturbation, answers[i], lengths[i], cut[i], self.run_name, self.step, test_set
            )
            rows.append(replace(row, chosen=place, samples=group))
            chosen.append(i)
        rewards = self.rewards.score([answers[i] for i in chosen], [samples[i] for i in chosen])
        return rows, rewards.total
