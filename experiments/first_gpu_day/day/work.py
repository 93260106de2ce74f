"""Parts that several checks use: policies, prompts, engines, and the comparison of rollouts."""

from dataclasses import replace
from typing import Any

import torch
from build_run import PLAIN, composed, device
from hydra.utils import instantiate

from day.base import Day, quantiles
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Rollout
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

MOST_RECORDINGS = 24


def config(day: Day, *overrides: str) -> Any:
    """Configuration of the paper's run on phantoms; it writes only metrics, into the scratch folder."""
    accelerator = f"trainer.accelerator={day.pick('gpu', 'cpu')}"
    cfg = composed([*day.model, *PLAIN, accelerator, *overrides])
    cfg.run_folder, cfg.experiment = str(day.scratch / "runs"), "first_gpu_day"
    return cfg


def policy_of(day: Day, dtype: str = "bfloat16", peft: str = "full") -> Policy:
    """The model on the device; an adapter has random weights, because a fresh one adds nothing.

    See :func:`end_often`.
    """
    cfg = composed([*day.model, f"model.recipe.dtype={dtype}", f"peft={peft}"])
    policy = instantiate(cfg.model).to(device())
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    end_often(day, policy)
    return policy


def end_often(day: Day, policy: Policy) -> None:
    """Let completions of random weights end at different lengths: one token in a hundred or so.

    Random weights hardly ever draw an end of sequence out of 152,000 tokens. So all tokens but about 200 get
    probability 0, as vision tokens do.
    """
    if not (day.weights or day.rehearsal):
        policy.banned.fill_(True)
        policy.banned[torch.tensor([*policy.eos_ids, *range(100 * len(policy.eos_ids))])] = False


def encoded(policy: Policy, n: int, modality: str = "mri", first: int = 0) -> list[EncodedPrompt]:
    """Phantom questions, with the paper's prompt."""
    prompt = instantiate(composed([]).prompt)
    source = PhantomSource(modality, first + n, "train")
    return [policy.encoder.encode(source[i], "train", prompt) for i in range(first, first + n)]


def engine_of(day: Day, record: str = "auto", **options: Any) -> SharedPrefixEngine:
    """The fast engine."""
    return SharedPrefixEngine(record=record, capture=day.capture, **options)


def use_capture(day: Day, module: Any, **changes: Any) -> None:
    """Change settings of a module's engine; in the rehearsal, let it capture steps."""
    capture = {"capture": day.capture} if day.capture else {}
    module.engine = replace(module.engine, **capture, **changes)


def differences(one: Rollout, other: Rollout) -> dict[str, Any]:
    """Rows with other tokens; differences of log-probabilities up to the first other token of each row."""
    width = min(one.tokens.shape[1], other.tokens.shape[1])
    equal = one.tokens[:, :width] == other.tokens[:, :width]
    others = ~(equal.all(1) & (one.lengths == other.lengths))
    compared = equal.cumprod(1).bool() & one.mask[:, :width] & other.mask[:, :width]
    found = quantiles((one.logprobs[:, :width] - other.logprobs[:, :width])[compared])
    return {"rows": len(others), "rows with other tokens": int(others.sum()), **found}


@torch.no_grad()
def trainer_differences(policy: Policy, prompts: list[EncodedPrompt], rollout: Rollout) -> dict[str, float]:
    """Differences of the log-probabilities of the sampler and of the packed trainer."""
    batch = collate(prompts, policy.pad_id, policy.device)
    logprobs = policy.logprobs(batch, rollout.tokens, rollout.mask)
    return quantiles((logprobs - rollout.logprobs)[rollout.mask])
