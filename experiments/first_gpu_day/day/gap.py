"""The sampler against the trainer, the reference engine and transformers' greedy answers."""

from typing import Any

import torch

from day.base import Day, Result, result
from day.work import differences, encoded, engine_of, policy_of, trainer_differences
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey

BATCH = 50  # questions that transformers answers together


def sampler_gap(day: Day) -> Result:
    """Log-probabilities in bf16, and greedy answers in fp32 and bf16."""
    policy = policy_of(day)
    prompts, sampling = encoded(policy, 4), Sampling(group_size=4, max_tokens=day.pick(256, 16))
    engines = {"rollout=shared_prefix": engine_of(day), "rollout=reference": ReferenceEngine()}
    rollouts = {name: engine(policy, prompts, sampling, NoiseKey(0, 0)) for name, engine in engines.items()}
    ours, reference = rollouts.values()
    table: list[dict[str, Any]] = [
        {
            "log-probabilities of": name,
            "against": "the packed trainer",
            **trainer_differences(policy, prompts, r),
        }
        for name, r in rollouts.items()
    ]
    between = differences(ours, reference)
    table.append({"log-probabilities of": "rollout=shared_prefix", "against": "rollout=reference"})
    table[-1] |= {name: between[name] for name in ("p50", "p99", "max")}
    questions = encoded(policy, day.pick(100, 8))
    answers = [greedy_answers(day, policy, questions, "bfloat16")]
    del policy
    answers.append(greedy_answers(day, policy_of(day, "float32"), questions, "float32"))
    share = answers[1]["equal answers"] / answers[1]["questions"]
    return result(
        {"bf16, nats": table, "greedy answers against transformers' generate": answers},
        {
            "bf16: sampler and trainer differ by at most 0.05 nats in the median": table[0]["p50"] <= 0.05,
            "and by at most 0.15 at the 99th percentile": table[0]["p99"] <= 0.15,
            "and by at most 0.05, or twice as much as transformers' generate and the trainer": table[0]["p99"]
            <= max(2 * table[1]["p99"], 0.05),
            "float32: 99 % of the greedy answers are transformers'": share >= 0.99,
        },
    )


@torch.no_grad()
def greedy_answers(day: Day, policy: Policy, questions: list[EncodedPrompt], dtype: str) -> dict[str, Any]:
    """Number of questions to which the engine and transformers' ``generate`` give the same answer."""
    sampling, engine, equal = Sampling(max_tokens=day.pick(64, 16), temperature=0.0), engine_of(day), 0
    ours = engine(policy, questions, sampling, NoiseKey(0, 0)).texts
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        theirs = ReferenceEngine()(policy, batch, sampling, NoiseKey(0, 0)).texts
        equal += sum(one == other for one, other in zip(ours[start:], theirs, strict=False))
    return {"dtype": dtype, "questions": len(questions), "equal answers": equal}
