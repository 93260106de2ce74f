"""Time and launches of a decoding step; the fused draw."""

import json
from collections.abc import Callable
from typing import Any

import torch
from build_run import device
from timing import clock
from torch.profiler import ProfilerActivity, profile

from day.base import ROOT, Day, Result, quantiles, result
from day.work import encoded, engine_of, policy_of
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.forward.lm_head import next_token_logprobs
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.draw import HAS_TRITON, draw
from medvlm_r1.rollout.engine import RolloutEngine, Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey, gumbel_max_scores

SHORT, LONG = 8, 56  # tokens; both in the first attention window, so that each records one step
MOST_LAUNCHES = 1500
# One step of 8 prompts x 8 rows, counted on tensors without storage.
COUNTS = ROOT / "experiments/decode_step/counts.json"


def decoding_speed(day: Day) -> Result:
    """Milliseconds of a step: plain, recorded, and compiled before it is recorded."""
    policy = policy_of(day)
    policy.eos_ids = [-1]  # no row ends
    prompts, table = encoded(policy, 8), []
    engines = {"eager": engine_of(day, "off"), "recorded": engine_of(day)}
    if not day.rehearsal:
        engines["compiled"] = engine_of(day, compiled=True)
    for count, group_size in day.pick(((4, 4), (8, 8), (8, 16)), ((2, 2), (2, 4), (4, 4))):
        row: dict[str, Any] = {"rows": count * group_size}
        for name, engine in engines.items():
            if name != "compiled" or len(table) == 1:  # compiling takes a minute for each shape
                row[f"{name} ms"] = step_milliseconds(engine, policy, prompts[:count], group_size)
        table.append(row)
    launches = launches_per_step(engines["eager"], policy, prompts, day.pick(8, 2))
    figures: dict[str, Any] = {"one decoding step": table, "launches of an eager step": launches}
    bounds = {"every step took time": all(value > 0 for row in table for value in row.values())}
    if not day.rehearsal:
        counted = json.loads(COUNTS.read_text())["steps"]["2B, 8 x 8"]["after"]
        rate = counted["bytes"] / 1e9 / table[1]["recorded ms"]
        figures |= {"launches, counted": counted["launches"], "TB/s of a large copy": copy_bandwidth()}
        figures["TB/s of a recorded step of 64 rows, by counted bytes"] = rate
        bounds["a recorded step takes at most 0.6 of an eager one, at every number of rows"] = all(
            row["recorded ms"] <= 0.6 * row["eager ms"] for row in table
        )
        bounds["a compiled step takes no longer than a recorded one"] = all(
            row["compiled ms"] <= 1.05 * row["recorded ms"] for row in table if "compiled ms" in row
        )
        bounds[f"at most {MOST_LAUNCHES} launches a step"] = 0 < launches <= MOST_LAUNCHES
        # a matrix product may take several kernels
        bounds["at most 1.3 times the counted launches"] = launches <= 1.3 * counted["launches"]
    return result(figures, bounds)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 1 GB, in TB/s."""
    source = torch.zeros(1_000_000_000, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2e9 / milliseconds(lambda: target.copy_(source)) / 1e9


def step_milliseconds(
    engine: RolloutEngine, policy: Policy, prompts: list[EncodedPrompt], group_size: int
) -> float:
    """Time of a rollout of many tokens minus that of few, per token; each runs twice before."""
    seconds = []
    for tokens in (SHORT, LONG):
        sampling, times = Sampling(group_size=group_size, max_tokens=tokens), []
        for attempt in range(4):
            start = clock()
            engine(policy, prompts, sampling, NoiseKey(0, attempt))
            times.append(clock() - start)
        seconds.append(min(times[2:]))
    return round(1e3 * (seconds[1] - seconds[0]) / (LONG - SHORT), 3)


def launches_per_step(
    engine: RolloutEngine, policy: Policy, prompts: list[EncodedPrompt], group_size: int
) -> float:
    """Kernels of a rollout of many tokens minus those of one of few, per token; operators on a CPU."""
    counts = []
    cuda = policy.device.type == "cuda"
    for tokens in (SHORT, SHORT + 8):
        sampling = Sampling(group_size=group_size, max_tokens=tokens)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
            engine(policy, prompts, sampling, NoiseKey(0, 0))
            clock()
        events = seen.events()
        kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
        counts.append(sum(event.device_type == kind for event in events))
    return (counts[1] - counts[0]) / 8


@torch.no_grad()
def draw_kernel(day: Day) -> Result:
    """Tokens, log-probabilities and time of the engine's draw and of the plain arithmetic in torch."""
    torch.manual_seed(0)
    width, vocabulary, dtype = day.pick((1536, 151_936, torch.bfloat16), (64, 3000, torch.float32))
    head = (0.02 * torch.randn(vocabulary, width)).to(device(), dtype)
    banned = torch.zeros(vocabulary, dtype=torch.bool, device=device())
    banned[-4:] = True
    table, sampling = [], Sampling(temperature=1.0)
    for rows in day.pick((16, 64, 128), (4, 8)):
        hidden = torch.randn(rows, width).to(device(), dtype)
        keys = NoiseKey(0, 0).completion_keys([str(row) for row in range(rows)], 1).to(device())
        steps = torch.arange(rows, device=device())

        def fused(hidden=hidden, keys=keys, steps=steps):
            return draw(hidden, head, banned, sampling, keys, steps)

        def plain(hidden=hidden, keys=keys, steps=steps):
            logprobs = next_token_logprobs(hidden, head, banned, sampling.divisor)
            scores, _, entropy = gumbel_max_scores(logprobs, sampling, keys, steps)
            tokens = scores.argmax(-1)
            return tokens, logprobs.gather(-1, tokens[:, None])[:, 0], entropy

        ours, (tokens, logprobs, entropy) = fused(), plain()
        same = ours.tokens == tokens
        table.append(
            {
                "rows": rows,
                "other tokens": int((~same).sum()),
                "log-probability, max": quantiles((ours.logprobs - logprobs)[same])["max"],
                "entropy, max": quantiles(ours.entropy - entropy)["max"],
                "draw ms": milliseconds(fused),
                "torch ms": milliseconds(plain),
            }
        )
    bounds = {
        "equal tokens, one of all rows excepted": sum(row["other tokens"] for row in table) <= 1,
        "log-probabilities to 1e-3": all(row["log-probability, max"] <= 1e-3 for row in table),
        "entropy to 1e-2": all(row["entropy, max"] <= 1e-2 for row in table),
    }
    if not day.rehearsal:
        fastest = all(row["draw ms"] <= 1.05 * row["torch ms"] for row in table)
        bounds["the draw takes no longer than torch"] = fastest
    return result(
        {"kernel": "Triton" if HAS_TRITON and hidden.is_cuda else "torch", "one draw, head included": table},
        bounds,
    )


def milliseconds(call: Callable[[], Any], repeats: int = 20) -> float:
    """Mean time of a call, after three others."""
    for _ in range(3):
        call()
    start = clock()
    for _ in range(repeats):
        call()
    return round(1e3 * (clock() - start) / repeats, 4)
