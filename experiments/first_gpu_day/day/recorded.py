"""Decoding steps that are recorded against steps that are not."""

import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from build_run import built

from day.base import Day, Result, gb, result
from day.work import MOST_RECORDINGS, config, differences, encoded, engine_of, policy_of, use_capture
from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Rollout, Sampling
from medvlm_r1.rollout.recorder import cuda_graph
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


def recorded_steps(day: Day, peft: str = "full", dtypes: Sequence[str] = ("float32", "bfloat16")) -> Result:
    """Tokens and log-probabilities in fp32 and bf16, also after weights moved and after an update."""
    table, bounds, figures = [], {}, {}
    for dtype in dtypes:
        policy = policy_of(day, dtype, peft)
        engines = {record: engine_of(day, record) for record in ("off", "auto", "verify")}
        prompts, n = encoded(policy, day.pick(8, 4)), day.pick(4, 2)
        sampling = Sampling(group_size=day.pick(16, 4), max_tokens=day.pick(128, 16))
        found: dict[str, Rollout] = {}
        for when, change in CHANGES.items():
            change(policy, found.get("off"), prompts[:n])
            chosen = prompts[n:] if when == "other prompts" else prompts[:n]
            before = found.get("off")
            found = {
                name: engine(policy, chosen, sampling, NoiseKey(0, 0))
                for name, engine in engines.items()
                if name != "verify" or when in ("first", "other prompts")
            }
            if change is update:
                bounds[f"{dtype}: the update changes samples"] = not same_tokens(before, found["off"])
            for name, rollout in found.items():
                if name != "off":
                    table.append(
                        {"dtype": dtype, "when": when, "record": name, **differences(found["off"], rollout)}
                    )
        if not day.rehearsal:
            dead = dead_inputs(policy, prompts[:n], sampling)
            figures[f"{dtype}: freed inputs"] = dead or "none"
            bounds[f"{dtype}: no input of a recording is freed"] = not dead
        failures = [f"{name}: {e.recorder.failure}" for name, e in engines.items() if e.recorder.failure]
        figures[f"{dtype}: self-check"] = "; ".join(failures) or "no difference"
        figures[f"{dtype}: recordings"] = engines["auto"].recorder.count
        figures[f"{dtype}: keys and values GB"] = gb(engines["auto"].recorder.memory_bytes)
        bounds[f"{dtype}: the recorder's own check finds no difference"] = not failures
        bounds[f"{dtype}: steps were recorded"] = engines["auto"].recorder.count > 0
        bounds[f"{dtype}: at most {MOST_RECORDINGS} recordings"] = (
            engines["auto"].recorder.count <= MOST_RECORDINGS
        )
        del policy, engines
    exact = [row for row in table if row["dtype"] == "float32"]
    rounded = [row for row in table if row["dtype"] == "bfloat16"]
    bounds["float32: equal tokens, one row of 64 excepted (a tie within rounding)"] = all(
        row["rows with other tokens"] <= row["rows"] / 64 for row in exact
    )
    bounds["float32: log-probabilities to 1e-3"] = all(row["max"] <= 1e-3 for row in exact)
    bounds["bfloat16: log-probabilities to 0.15 at the 99th percentile"] = all(
        row["p99"] <= 0.15 for row in rounded
    )
    return result({"rollouts against plain steps": table, **figures}, bounds)


def recorded_steps_lora(day: Day) -> Result:
    """:func:`recorded_steps` with an adapter."""
    return recorded_steps(day, "lora")


def dead_inputs(policy: Policy, prompts: list[EncodedPrompt], sampling: Sampling) -> str:
    """Replay with torch's own search for freed inputs (since 2.13); returns its finding, or nothing."""
    if "check_input_liveness" not in inspect.signature(torch.cuda.graph.__init__).parameters:
        return ""
    engine = SharedPrefixEngine(capture=functools.partial(cuda_graph, check_input_liveness=True))
    try:
        for change in (nothing, move):
            change(policy, None, prompts)
            engine(policy, prompts, sampling, NoiseKey(0, 0))
    except RuntimeError as error:
        return str(error)[:2000]
    return ""


def nothing(policy: Policy, rollout: Rollout | None, prompts: list) -> None:
    """Sample with the same weights."""


def move(policy: Policy, rollout: Rollout | None, prompts: list) -> None:
    """Give all weights other addresses, as Lightning does between fit and test."""
    device = policy.device
    if device.type == "cuda":
        policy.cpu()
        torch.cuda.empty_cache()
        # Otherwise the allocator may give the same addresses again.
        policy.moved = torch.empty(1_000_000_000, dtype=torch.uint8, device=device)
        policy.to(device)
    else:
        for tensor in (*policy.parameters(), *policy.buffers()):
            tensor.data = tensor.data.clone()


def update(policy: Policy, rollout: Rollout, prompts: list) -> None:
    """Take one optimiser step that raises the log-probabilities of the first prompt's completions."""
    batch, rows = collate(prompts[:1], policy.pad_id, policy.device), len(rollout.tokens) // len(prompts)
    tokens, mask = rollout.tokens[:rows], rollout.mask[:rows]
    policy.logprobs(batch, tokens, mask)[mask].mean().neg().backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.trainable_parameters, math.inf)
    size = sum(p.detach().float().square().sum() for p in policy.trainable_parameters).sqrt()
    # A share of the weights' norm that changes samples in bf16 too.
    share = 0.5 if policy.has_adapter else 0.01
    torch.optim.SGD(policy.trainable_parameters, lr=float(share * size / norm)).step()
    policy.zero_grad()


# What happens before each rollout.
CHANGES = {"first": nothing, "weights moved": move, "an update": update, "other prompts": nothing}


def same_tokens(one: Rollout, other: Rollout) -> bool:
    return one.tokens.shape == other.tokens.shape and torch.equal(one.tokens, other.tokens)


def recorded_flow(day: Day) -> Result:
    """A run's own order with every recorded step verified; the trainer is a second witness."""
    tokens = f"model.recipe.max_completion_tokens={day.pick(96, 12)}"
    sizes = [f"data.{name}.n={n}" for name, n in (("validation", 8), ("test.mri", 8), ("test.ct", 1))]
    sizes += ["data.test.xray.n=1", "trainer.max_steps=3", "trainer.val_check_interval=1.0"]
    sizes += ["controls=[image]"]
    cfg = config(day, tokens, *sizes, f"data.train.n={day.pick(12, 24)}")
    module, data, trainer = built(cfg)
    use_capture(day, module, record="verify")
    table: list[dict[str, Any]] = []
    for phase in ("validate", "fit", "validate", "test"):
        trainer_call = getattr(trainer, phase)
        trainer_call(module, data, **({} if phase == "fit" else {"verbose": False}))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"phase": phase, "recordings": module.engine.recorder.count}
        row["self-check"] = module.engine.recorder.failure or "no difference"
        row["sampler and trainer, p99"] = (
            round(metrics["train/sampling_logp_difference_p99"], 5) if phase == "fit" else ""
        )
        table.append(row)
        if phase == "fit":
            fitted = metrics
    bounds = {
        "the recorder's own check finds no difference": module.engine.recorder.failure is None,
        "3 steps with finite loss": module.step == 3 and math.isfinite(fitted["train/loss"]),
        "sampler and trainer differ by at most 0.15 at the 99th percentile": fitted[
            "train/sampling_logp_difference_p99"
        ]
        <= 0.15,
        "every test question has an answer": len(module.predictions) == 10,
    }
    return result({"phases": table}, bounds)
