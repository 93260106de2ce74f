"""Predict whether a run fits on a card and how long it takes, from its configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvlm_r1.plan.cards import Card
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import (
    PHASES,
    Inventory,
    MemoryPart,
    ParameterCount,
    moment_bytes,
    resident,
    transient,
)
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.loading.architecture import cache_bytes_per_token, load_config

# Assumed share of a card's published arithmetic in passes, and of its published bandwidth in updates.
UTILISATION = 0.4
BANDWIDTH_SHARE = 0.7
# Assumed seconds that the host needs to launch one layer of one decoding step.
LAUNCH_SECONDS = 0.7e-3


@dataclass(frozen=True)
class PhaseCost:
    """One phase of a training step on one device: floating-point operations and estimated seconds."""

    phase: str
    flops: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Memory and time of a run.

    Attributes:
        memory: bytes of each part on one device, by phase.
        step: cost of one training step by phase, at mean lengths; empty without training.
        seconds_per_answer: estimate for one evaluation question on one device.
        notes: the assumptions.
    """

    workload: Workload
    counts: tuple[ParameterCount, ...]
    memory: tuple[MemoryPart, ...]
    step: tuple[PhaseCost, ...]
    seconds_per_answer: float
    notes: tuple[str, ...]

    @property
    def card(self) -> Card:
        return self.workload.card

    @property
    def phases(self) -> tuple[str, ...]:
        if self.workload.method == "zero_shot":
            return PHASES[-1:]
        skipped = ("sampling", "reference") if self.workload.method == "sft" else ("reference",)
        return tuple(phase for phase in PHASES if self.workload.has_reference or phase not in skipped)

    @property
    def peaks(self) -> dict[str, float]:
        return {phase: sum(part.bytes.get(phase, 0) for part in self.memory) for phase in self.phases}

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.card.memory

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run; ``None`` if the configuration lacks the number of questions."""
        run = self.workload
        if run.steps is None or run.evaluations is None:
            return None
        step = sum(phase.seconds for phase in self.step)
        return run.steps * step + run.evaluations * self.seconds_per_answer / run.world_size


def plan(workload: Workload, timed: bool = True) -> Plan:
    """Plan a run by measuring its passes on the meta device; see :mod:`medvlm_r1.plan.measure`.

    Without ``timed``, ``step`` is empty and ``seconds_per_answer`` 0.
    """
    config = load_config(workload.path, workload.revision)
    meter = Meter(config, workload.recipe, workload.tuning, layout=workload.layout)
    inventory = Inventory(meter, workload)
    step, seconds_per_answer = (), 0.0
    if timed:
        step = _step(workload, inventory, meter) if workload.method != "zero_shot" else ()
        batch = workload.recipe.evaluation_batch
        _, seconds = _rollout(workload, inventory, meter, batch, 1, workload.max_answer)
        seconds_per_answer = seconds / batch
    return Plan(
        workload=workload,
        counts=tuple(inventory.counts),
        memory=(*resident(workload, inventory), *transient(workload, inventory, meter)),
        step=step,
        seconds_per_answer=seconds_per_answer,
        notes=tuple(_notes(workload, meter)),
    )


def candidates(workload: Workload) -> list[list[str]]:
    """Overrides that save memory: first more time, then rounding, then fewer weights, then more devices."""
    quantized = bool(workload.tuning.quantize)
    if workload.method == "zero_shot":
        sizes = [workload.recipe.evaluation_batch // n for n in (2, 4, 8, 16)]
        smaller = [[f"model.recipe.evaluation_batch={n}"] for n in sizes if n]
        return smaller + ([] if quantized else [["peft=nf4"], ["peft=nf4", *(smaller or [[]])[-1]]])
    batch = ["model.recipe.micro_batch=1"] if workload.micro_batch > 1 else []
    checkpointing = "model.recipe.gradient_checkpointing=true"
    recompute = [] if workload.recipe.gradient_checkpointing else [checkpointing]
    slower = [[], batch, recompute, [*batch, *recompute]]
    options = list(slower)
    if not workload.tuning.adapter:
        if "8bit" not in workload.optimizer and "SGD" not in workload.optimizer:
            options += [["optimizer=adamw_8bit", *option] for option in slower]
        options += [["peft=lora", *option] for option in slower]
    if not quantized:
        options += [["peft=qlora", *option] for option in slower]
        for devices in (2, 4, 8):
            if devices > workload.world_size and workload.recipe.prompts_per_step % devices == 0:
                fsdp = ["trainer=fsdp", f"trainer.devices={devices}"]
                if "8bit" in workload.optimizer:  # FSDP cannot split 8-bit moments
                    fsdp.append("optimizer=adamw")
                options += [[*fsdp, *option] for option in ([], [*batch, *recompute])]
    unique = dict.fromkeys(map(tuple, options))
    return [list(option) for option in unique if option]


def remedies(workload: Workload, replan: Callable[[Sequence[str]], Plan]) -> dict[tuple[str, ...], Plan]:
    """Plan the candidates; return the first that fits on as many devices, and the first on more."""
    found: dict[bool, tuple[tuple[str, ...], Plan]] = {}
    for overrides in candidates(workload):
        more_devices = any(override.startswith("trainer=") for override in overrides)
        if more_devices not in found and (smaller := replan(overrides)).fits:
            found[more_devices] = tuple(overrides), smaller
    return dict(found[more_devices] for more_devices in sorted(found))


def _step(workload: Workload, inventory: Inventory, meter: Meter) -> tuple[PhaseCost, ...]:
    """Cost of one training step on one device, with completions of mean length."""
    costs = []
    if workload.method == "grpo":
        shape = workload.prompts, workload.group_size, workload.max_completion
        costs.append(PhaseCost("sampling", *_rollout(workload, inventory, meter, *shape)))
    shape = workload.shape(workload.micro_batch, workload.group_size, workload.mean_completion)
    scored = int(workload.has_reference) + int(workload.scores_old)
    if scored:
        flops = scored * workload.micro_batches * meter.scoring(shape).flops
        costs.append(PhaseCost("reference", flops, flops / _speed(workload)))
    passes = workload.micro_batches * workload.num_iterations
    flops = passes * meter.training(shape, workload.method == "grpo").flops
    costs.append(PhaseCost("training", flops, flops / _speed(workload)))
    # An update reads and writes weights, masters, gradients and moments.
    shards = workload.world_size if workload.strategy in ("fsdp", "zero2") else 1
    parameters = sum(inventory.trained) * (4 + 2 * inventory.dtype.itemsize)
    moved = 2 * (moment_bytes(workload, inventory.trained) + parameters) / shards
    seconds = workload.updates * moved / (BANDWIDTH_SHARE * workload.card.bandwidth)
    return (*costs, PhaseCost("update", 0.0, seconds))


def _rollout(
    workload: Workload, inventory: Inventory, meter: Meter, prompts: int, group_size: int, limit: int
) -> tuple[float, float]:
    """Operations and seconds of one call of the rollout engine, with completions of half the limit."""
    shape = workload.shape(prompts, group_size, max(1, limit // 2))
    prefill = meter.prefill(shape, workload.shares_prefix).flops
    position = shape.completion // 2
    decode = meter.decode(shape, position).flops
    copies = prompts if workload.shares_prefix else shape.rows
    cached = copies * workload.prompt_tokens + shape.rows * position
    read = inventory.language_bytes(bool(workload.tuning.quantize))
    read += cached * cache_bytes_per_token(meter.config, inventory.dtype)
    launch = LAUNCH_SECONDS * meter.config.text_config.num_hidden_layers
    latency = max(read / workload.card.bandwidth, decode / _speed(workload), launch)
    flops = prefill + shape.completion * decode
    return flops, prefill / _speed(workload) + shape.completion * latency


def _speed(workload: Workload) -> float:
    """Assumed operations per second."""
    card = workload.card
    return UTILISATION * (card.flops if workload.recipe.dtype == "bfloat16" else card.tf32_flops)


def _notes(workload: Workload, meter: Meter) -> list[str]:
    """The assumptions behind the figures."""
    rows, columns = (side // 2 for side in workload.grid)
    image = f"{workload.image_tokens} image tokens ({rows} x {columns}, the largest image)"
    counted = "its tokenizer" if workload.text_is_exact else "3.8 characters a token"
    rate = "bf16" if workload.recipe.dtype == "bfloat16" else "TF32"
    layers = meter.config.text_config.num_hidden_layers
    notes = [
        f"A prompt is {workload.prompt_tokens} tokens: {image} and {workload.text_tokens} of text (a typical "
        f"question, {counted}).",
        "Memory assumes that every completion reaches the limit. It is counted by running the model's code "
        "on the meta device and excludes fragmentation. A card's GB is taken as 1e9 bytes.",
        f"Times are an estimate: completions of half the limit on average, {UTILISATION:.0%} of the card's "
        f"dense {rate} rate, {BANDWIDTH_SHARE:.0%} of its bandwidth in updates, and at least "
        f"{LAUNCH_SECONDS * layers * 1e3:.1f} ms per decoding step (the host launches {layers} layers).",
    ]
    if workload.dynamic_sampling_rounds:
        notes.append(
            "Sampling covers one round; dynamic sampling adds up to "
            f"{workload.dynamic_sampling_rounds} more for zero-advantage groups."
        )
    if workload.world_size > 1:
        notes.append("Times exclude communication between devices.")
    if workload.tuning.quantize:
        notes.append("4-bit weights: times exclude dequantisation; activations are those of 16-bit weights.")
    known = workload.optimizer.startswith(("torch.optim.AdamW", "torch.optim.SGD"))
    if workload.method != "zero_shot" and not known and "8bit" not in workload.optimizer:
        notes.append(f"The optimiser {workload.optimizer} is unknown to the plan and counted as AdamW.")
    return notes
