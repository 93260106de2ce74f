"""Check that all rows compute the same, then time them in turns, one step each."""

import argparse
import platform
import statistics
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from our_side import OurSide, variants
from side import Computed, Given, Side
from sizes import Size, describe, encoder, other_weights, questions, random_model
from trl_side import LR, TRLSide
from trl_side import VARIANTS as TRL_VARIANTS

from medvlm_r1.artifacts.record import hardware
from medvlm_r1.rollout import sampling_noise

PACKAGES = ("torch", "transformers", "trl", "peft", "lightning", "accelerate")
# fp32 sums in another order: absolute for log-probabilities and the loss, relative for the norm.
TOLERANCES = {"logprobs": 2e-5, "ref_logprobs": 2e-5, "sampled": 2e-5, "loss": 1e-6, "grad_norm": 1e-5}


class DisagreementError(RuntimeError):
    """The sides compute different results, so their times are not comparable."""


def compare(size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    """Check and time all rows.

    Raises:
        DisagreementError: in fp32, a row differs from ours beyond :data:`TOLERANCES`.
    """
    steps = 1 + arguments.warmup + arguments.steps
    names = [v.name for v in (*variants(), *TRL_VARIANTS)]
    # a complete name selects that row alone: "ours" is also a part of others
    wanted = arguments.rows or names
    chosen = [n for n in names if any(part == n or (part not in names and part in n) for part in wanted)]
    given = given_to_all(size, steps)
    sides = [side_of(name, size, given) for name in chosen]
    for side in sides:
        side.start(arguments.threads)
    differences = agree(sides, size)
    rounds = []
    for number in range(arguments.warmup + arguments.steps):
        print(f"round {number + 1} of {arguments.warmup + arguments.steps}", file=sys.stderr)
        rounds.append({side.name: side.timed_step() for side in sides})
    measured = rounds[arguments.warmup :]
    return {
        "size": describe(size, given.model),
        "steps": arguments.steps,
        "warmup": 1 + arguments.warmup,
        "parity": {"tolerances": TOLERANCES, "differences": differences},
        "rows": {side.name: {"seconds": summary([r[side.name] for r in measured])} for side in sides},
    }


def watch(size: Size, name: str, threads: int) -> dict[str, Any]:
    """Measure operations, memory and counts of one row."""
    side = side_of(name, size, given_to_all(size, 2))
    side.start(threads)
    return side.watched_step()


def entropy_times(size: Size, arguments: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Yield the seconds of each phase of our steps, with the entropy of sampled tokens as one more phase."""
    side = side_of("ours", size, given_to_all(size, arguments.warmup + arguments.steps))
    side.phases.wrap(sampling_noise, "entropy", "entropy")
    side.start(arguments.threads)
    for number in range(arguments.warmup + arguments.steps):
        times = side.timed_step()
        if number >= arguments.warmup:
            yield times


def given_to_all(size: Size, steps: int) -> Given:
    model = random_model(size)
    shared = size.tune == "full" and size.dtype == "float32"  # otherwise one per side
    return Given(
        model=model,
        reference=other_weights(model) if size.tune == "full" and size.beta else None,
        questions=questions(size, size.prompts * (steps + 1), encoder(size.model)),
        adapter={},
        optimizer=torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0) if shared else None,
        steps=steps,
    )


def side_of(name: str, size: Size, given: Given) -> Side:
    for variant in variants():
        if variant.name == name:
            return OurSide(variant, size, given)
    return TRLSide(next(v for v in TRL_VARIANTS if v.name == name), size, given)


def agree(sides: list[Side], size: Size) -> dict[str, dict[str, float]]:
    """Take the parity step: the first row samples completions of unequal lengths, and all train on them.

    Returns:
        The largest differences of each row from the first.
    """
    first, *rest = sides
    lengths = size.row_lengths()
    first.lengths = size.row_lengths(ragged=True)
    print(f"parity: {first.name}", file=sys.stderr)
    first.timed_step()
    expected, first.lengths = first.computed, lengths
    found = {first.name: differences(expected, expected)}
    for side in rest:
        print(f"parity: {side.name}", file=sys.stderr)
        side.replay(first)
        side.timed_step()
        found[side.name] = differences(side.computed, expected)
        side.replay(None)
    for name, values in found.items():
        for quantity, value in values.items():
            if size.dtype == "float32" and not value <= TOLERANCES[quantity]:
                raise DisagreementError(
                    f"{name}: {quantity} differs from {first.name} by {value:.2e}, above "
                    f"{TOLERANCES[quantity]:.0e}: the sides compute different results; no times were measured"
                )
    return found


def differences(one: Computed, other: Computed) -> dict[str, float]:
    """Return the largest absolute differences, and the relative one of the gradient norm.

    Raises:
        DisagreementError: prompts or completions differ.
    """
    if one.prompt != other.prompt or not torch.equal(one.mask, other.mask):
        raise DisagreementError("the sides have different prompts or completions")
    mask, found = other.mask, {}
    for name in ("logprobs", "ref_logprobs"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if theirs is not None:
            found[name] = float((mine - theirs)[mask].abs().max())
    if one is other and one.sampled is not None:  # sampler against trainer
        found["sampled"] = float((one.sampled - one.logprobs)[mask].abs().max())
    found["loss"] = abs(one.loss - other.loss)
    found["grad_norm"] = abs(one.grad_norm - other.grad_norm) / other.grad_norm
    return found


def summary(steps: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return median, minimum and maximum of each phase that a side has."""
    return {
        phase: {
            "median": statistics.median(step.get(phase, 0.0) for step in steps),
            "least": min(step.get(phase, 0.0) for step in steps),
            "most": max(step.get(phase, 0.0) for step in steps),
            "all": [round(step.get(phase, 0.0), 4) for step in steps],
        }
        for phase in {phase: None for step in steps for phase in step}
    }


def ratios(rows: dict[str, Any]) -> dict[str, Any]:
    """Compare ours with each of TRL's rows, and with the best of them in each quantity.

    Times are TRL's divided by ours (larger is better), memory is ours divided by TRL's (smaller is better).
    """
    theirs = {name: row for name, row in rows.items() if name.startswith("TRL")}
    if "ours" not in rows or not theirs:
        return {}
    ours, found = rows["ours"], {}
    for name, row in theirs.items():
        found[name] = {
            phase: row["seconds"][phase]["median"] / ours["seconds"][phase]["median"]
            for phase in ("step", "sample", "reference", "train")
            if phase in ours["seconds"] and ours["seconds"][phase]["median"]
        }
        if "memory" in row:
            for key, kind in (("peak_memory", "total"), ("peak_memory_above_resident", "above_resident")):
                found[name][key] = ours["memory"][kind] / row["memory"][kind]
    pick = {key: max if "memory" in key else min for key in next(iter(found.values()))}
    best = {key: choose(row[key] for row in found.values()) for key, choose in pick.items()}
    meaning = "times: TRL / ours; peak_memory: ours / TRL; against the best of TRL's rows in each quantity"
    return {"ratio": best, "ratio_means": meaning, "ratios": found}


def machine(threads: int) -> dict[str, Any]:
    return {
        "hardware": hardware(),
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
