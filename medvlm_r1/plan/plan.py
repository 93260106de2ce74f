"""Predict whether a run fits on a card and how long it takes, from its configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvlm_r1.plan.cards import Card
from medvlm_r1.plan.inventory import Inventory, ParameterCount
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import (
    PHASES,
    MemoryPart,
    checkpoint_bytes,
    resident,
    transient,
)
from medvlm_r1.plan.times import (
    BANDWIDTH_SHARE,
    DISK_BANDWIDTH,
    GRAPH_SECONDS,
    LAUNCH_SECONDS,
    UTILISATION,
    Clock,
    PhaseCost,
)
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.loading.architecture import load_config


@dataclass(frozen=True)
class Plan:
    """Memory and time of a run.

    Attributes:
        memory: bytes of each part on one device, by phase.
        step: cost of one training step by phase, at mean lengths; empty without training.
        evaluation_seconds: of all evaluations of the run; ``None`` without the number of questions.
        checkpoints: bytes on disk of last.ckpt and of best.ckpt.
        host_memory: bytes of the weights that all processes of the run load.
        notes: the assumptions.
    """

    workload: Workload
    counts: tuple[ParameterCount, ...]
    memory: tuple[MemoryPart, ...]
    step: tuple[PhaseCost, ...]
    evaluation_seconds: float | None
    checkpoints: tuple[float, float]
    host_memory: float
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
    def step_seconds(self) -> float:
        return sum(phase.seconds for phase in self.step)

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds in which the run waits for checkpoints to be on disk."""
        return self.workload.checkpoints * self.checkpoints[0] / DISK_BANDWIDTH

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run; ``None`` if the configuration lacks the number of questions."""
        steps = self.workload.questions.steps
        if self.evaluation_seconds is None or steps is None:
            return None
        training = steps * self.step_seconds
        return training + self.checkpoint_seconds + self.evaluation_seconds


def plan(workload: Workload, timed: bool = True) -> Plan:
    """Plan a run by measuring its passes on the meta device; see :mod:`medvlm_r1.plan.measure`.

    Without ``timed``, ``step`` is empty and ``evaluation_seconds`` 0.
    """
    return plan_on(workload, *measure_model(workload), timed)


def measure_model(workload: Workload) -> tuple[Meter, Inventory]:
    """The model of a run, which plans of other devices share."""
    config = load_config(workload.path, workload.revision)
    meter = Meter(config, workload.recipe, workload.tuning, layout=workload.layout)
    return meter, Inventory(meter, workload)


def plan_on(workload: Workload, meter: Meter, inventory: Inventory, timed: bool = True) -> Plan:
    """:func:`plan` with a measured model."""
    step, evaluation = (), 0.0
    if timed:
        clock = Clock(workload, inventory, meter)
        step = tuple(clock.step()) if workload.method != "zero_shot" else ()
        evaluation = clock.evaluation()
    return Plan(
        workload=workload,
        counts=tuple(inventory.counts),
        memory=(*resident(workload, inventory), *transient(workload, inventory, meter)),
        step=step,
        evaluation_seconds=evaluation,
        checkpoints=checkpoint_bytes(workload, inventory),
        host_memory=workload.world_size * inventory.total * inventory.dtype.itemsize,
        notes=tuple(_notes(workload)),
    )


def candidates(workload: Workload) -> list[list[str]]:
    """Overrides that save memory: first more time, then rounding, then fewer weights, then more devices."""
    quantized = bool(workload.tuning.quantize)
    fewer_rows = ["rollout.max_memory_gb=1"] if workload.shares_prefix else []
    if workload.method == "zero_shot":
        smaller = [fewer_rows, ["rollout.max_rows=16"]] if workload.shares_prefix else []
        return smaller + ([] if quantized else [["peft=nf4"], ["peft=nf4", *(smaller or [[]])[-1]]])
    batch = ["model.recipe.micro_batch=1"] if workload.micro_batch > 1 else []
    checkpointing = "model.recipe.gradient_checkpointing=true"
    recompute = [] if workload.recipe.gradient_checkpointing else [checkpointing]
    slower = [[], fewer_rows, batch, recompute, [*batch, *recompute], [*fewer_rows, *batch, *recompute]]
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
                options += [[*fsdp, *option] for option in (slower[0], fewer_rows, slower[-1])]
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


def _notes(workload: Workload) -> list[str]:
    """The assumptions behind the figures."""
    rows, columns = (side // 2 for side in workload.grid)
    image = f"{workload.image_tokens} image tokens ({rows} x {columns}, the largest image)"
    counted = "its tokenizer" if workload.text_is_exact else "3.8 characters a token"
    rate = "bf16" if workload.recipe.dtype == "bfloat16" else "TF32"
    notes = [
        f"A prompt is {workload.prompt_tokens} tokens: {image} and {workload.text_tokens} of text (a typical "
        f"question, {counted}).",
        "Memory assumes that every completion reaches the limit. It is counted by running the model's code "
        "on the meta device and excludes fragmentation. A card's GB is taken as 1e9 bytes.",
        "Times are estimates, never measured on a GPU, for completions of half the limit on average and the "
        f"longest of a batch at the limit. A pass takes as long as its operations at {UTILISATION:.0%} of "
        f"the card's dense {rate} rate, its bytes at {BANDWIDTH_SHARE:.0%} of its bandwidth, or "
        f"{LAUNCH_SECONDS * 1e6:.0f} us per kernel for the host to launch it; in a CUDA graph, "
        f"{GRAPH_SECONDS * 1e6:.1f} us per kernel come on top. "
        f"A disk writes {DISK_BANDWIDTH / 1e9:.0f} GB/s. Loading and reading data are not in the estimate.",
    ]
    if workload.dynamic_sampling_rounds:
        notes.append(
            "Sampling covers one round; dynamic sampling adds up to "
            f"{workload.dynamic_sampling_rounds} more for zero-advantage groups."
        )
    if workload.world_size > 1:
        notes.append(
            f"Communication assumes {BANDWIDTH_SHARE:.0%} of {workload.card.link / 1e9:.0f} GB/s between "
            "devices of one machine, and no overlap with the passes; a network between machines is slower."
        )
    if workload.tuning.quantize:
        notes.append("4-bit weights: activations are those of 16-bit weights.")
    known = workload.optimizer.startswith(("torch.optim.AdamW", "torch.optim.SGD"))
    if workload.method != "zero_shot" and not known and "8bit" not in workload.optimizer:
        notes.append(f"The optimiser {workload.optimizer} is unknown to the plan and counted as AdamW.")
    return notes
