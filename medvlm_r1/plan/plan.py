"""Does a run fit, and how long would it take? From the configuration alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvlm_r1.plan.cards import Card
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import PHASES, Count, Held, Inventory, moment_bytes, resident, transient
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.loading.architecture import cache_bytes_per_token, load_config

# Assumed: the share of a card's published arithmetic that passes reach, and of its bandwidth that the
# update reaches.
UTILISATION = 0.4
BANDWIDTH_SHARE = 0.7
# Assumed: seconds that transformers' generate needs to launch one layer of one decoding step.
LAUNCH_SECONDS = 0.7e-3

Replan = Callable[[Sequence[str]], "Plan"]


@dataclass(frozen=True)
class Work:
    """One phase of a step on one device: floating-point operations and estimated seconds."""

    phase: str
    flops: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run holds and does.

    Attributes:
        workload: the run.
        counts: parameters of each part of the model.
        held: bytes of each part on one device, by phase.
        work: of one training step, phase by phase, at mean lengths; empty without training.
        answering: estimated seconds for one question of evaluation on one device.
        notes: what was assumed.
    """

    workload: Workload
    counts: tuple[Count, ...]
    held: tuple[Held, ...]
    work: tuple[Work, ...]
    answering: float
    notes: tuple[str, ...]

    @property
    def card(self) -> Card:
        return self.workload.card

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that this run has."""
        none = {"grpo": (), "sft": ("sampling", "reference"), "zero_shot": PHASES[:-1]}[self.workload.method]
        if self.workload.method == "grpo" and not self.workload.keeps_reference:
            none = ("reference",)
        return tuple(phase for phase in PHASES if phase not in none)

    @property
    def peaks(self) -> dict[str, float]:
        """Bytes that each phase holds at its fullest."""
        return {phase: sum(part.at.get(phase, 0) for part in self.held) for phase in self.phases}

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.card.memory

    @property
    def seconds(self) -> float | None:
        """Of the whole run; ``None`` if the configuration does not tell how many questions there are."""
        if self.workload.steps is None or self.workload.evaluations is None:
            return None
        step = sum(work.seconds for work in self.work)
        return self.workload.steps * step + self.workload.evaluations * self.answering / self.workload.world


def plan(workload: Workload, timed: bool = True) -> Plan:
    """Measure on the meta device; see :mod:`medvlm_r1.plan.measure`.

    Args:
        timed: estimate times too; without, ``work`` is empty and ``answering`` 0.
    """
    meter = Meter(
        load_config(workload.path, workload.revision),
        workload.recipe,
        workload.tuning,
        layout=workload.layout,
    )
    stock = Inventory(meter, workload)
    work, answering = (), 0.0
    if timed:
        questions = workload.recipe.evaluation_batch
        work = _step(workload, stock, meter) if workload.method != "zero_shot" else ()
        answering = _generate(workload, stock, meter, questions, 1, workload.answer)[1] / questions
    return Plan(
        workload=workload,
        counts=tuple(stock.counts),
        held=(*resident(workload, stock), *transient(workload, stock, meter)),
        work=work,
        answering=answering,
        notes=tuple(_notes(workload, meter)),
    )


def candidates(workload: Workload) -> list[list[str]]:
    """Overrides that make a run smaller, in the order of what they change: time, rounding, what is trained.

    More devices come last, for they change nothing but cost most.
    """
    if workload.method == "zero_shot":
        sizes = [workload.recipe.evaluation_batch // n for n in (2, 4, 8, 16)]
        fewer = [[f"model.recipe.evaluation_batch={n}"] for n in sizes if n]
        return [
            *fewer,
            *([[]] if workload.tuning.quantize else [["peft=nf4"], ["peft=nf4", *(fewer or [[]])[-1]]]),
        ]
    small = ["model.recipe.micro_batch=1"] if workload.micro_batch > 1 else []
    again = [] if workload.recipe.gradient_checkpointing else ["model.recipe.gradient_checkpointing=true"]
    every = [[], small, again, [*small, *again]]
    ways = list(every)
    if not workload.tuning.adapter:
        if "8bit" not in workload.optimizer and "SGD" not in workload.optimizer:
            ways += [["optimizer=adamw_8bit", *way] for way in every]
        ways += [["peft=lora", *way] for way in every]
    if not workload.tuning.quantize:
        ways += [["peft=qlora", *way] for way in every]
        for devices in (2, 4, 8):
            if devices > workload.world and workload.recipe.prompts_per_step % devices == 0:
                split = ["trainer=fsdp", f"trainer.devices={devices}"]
                if "8bit" in workload.optimizer:  # 8-bit moments cannot be split
                    split.append("optimizer=adamw")
                ways += [[*split, *way] for way in ([], [*small, *again])]
    unique: list[list[str]] = []
    for way in ways:
        if way and way not in unique:
            unique.append(way)
    return unique


def remedies(workload: Workload, replan: Replan) -> dict[tuple[str, ...], Plan]:
    """The first candidate that fits on as many devices, and the first on more; each really planned."""
    found: dict[bool, tuple[tuple[str, ...], Plan]] = {}
    for way in candidates(workload):
        more = any(override.startswith("trainer=") for override in way)
        if more in found or not way:
            continue
        made = replan(way)
        if made.fits:
            found[more] = tuple(way), made
    return dict(found[more] for more in sorted(found))


def _step(workload: Workload, stock: Inventory, meter: Meter) -> tuple[Work, ...]:
    """The phases of one training step on one device, with completions of mean length."""
    work = []
    if workload.method == "grpo":
        work.append(
            Work(
                "sampling",
                *_generate(
                    workload, stock, meter, workload.prompts, workload.group_size, workload.completion
                ),
            )
        )
    lengths = workload.lengths(workload.micro_batch, workload.group_size, workload.mean)
    scored = int(workload.keeps_reference) + int(workload.scores_before)
    if scored:
        flops = scored * workload.micro_batches * meter.scoring(lengths).flops
        work.append(Work("reference", flops, flops / _speed(workload)))
    flops = (
        workload.micro_batches * workload.passes * meter.training(lengths, workload.method == "grpo").flops
    )
    work.append(Work("training", flops, flops / _speed(workload)))
    # weights, masters and gradients are read and written, moments too
    shared = workload.world if workload.strategy in ("fsdp", "zero2") else 1
    trained = sum(stock.trained)
    moved = 2 * (moment_bytes(workload, stock.trained) + trained * (4 + 2 * stock.dtype.itemsize)) / shared
    seconds = workload.updates * moved / (BANDWIDTH_SHARE * workload.card.bandwidth)
    return (*work, Work("update", 0.0, seconds))


def _generate(
    workload: Workload, stock: Inventory, meter: Meter, prompts: int, group_size: int, limit: int
) -> tuple[float, float]:
    """Operations and seconds of one call of the rollout engine."""
    lengths = workload.lengths(prompts, group_size, max(1, limit // 2))
    first = meter.prefill(lengths, workload.shares_prefix).flops
    own = lengths.completion // 2
    each = meter.decode(lengths, own).flops
    copies = prompts if workload.shares_prefix else lengths.rows
    read = stock.language_bytes(bool(workload.tuning.quantize))
    read += (copies * workload.prompt + lengths.rows * own) * cache_bytes_per_token(meter.config, stock.dtype)
    launch = LAUNCH_SECONDS * meter.config.text_config.num_hidden_layers
    latency = max(read / workload.card.bandwidth, each / _speed(workload), launch)
    return first + lengths.completion * each, first / _speed(workload) + lengths.completion * latency


def _speed(workload: Workload) -> float:
    """Assumed operations per second."""
    card = workload.card
    return UTILISATION * (card.flops if workload.recipe.dtype == "bfloat16" else card.tf32_flops)


def _notes(workload: Workload, meter: Meter) -> list[str]:
    """The assumptions behind the figures."""
    down, across = (side // 2 for side in workload.grid)
    counted = "its tokenizer" if workload.exact_text else "3.8 characters a token"
    rate = "bf16" if workload.recipe.dtype == "bfloat16" else "TF32"
    layers = meter.config.text_config.num_hidden_layers
    notes = [
        f"A prompt is {workload.prompt} tokens: {workload.image} image tokens ({down} x {across}, the "
        f"largest image) and {workload.text} of text (a typical question, {counted}).",
        "Memory assumes that every completion reaches the limit. It is counted by running the model's code "
        "on the meta device and excludes fragmentation. A card's GB is taken as 1e9 bytes.",
        f"Times are an estimate: completions of half the limit on average, {UTILISATION:.0%} of the card's "
        f"dense {rate} rate, {BANDWIDTH_SHARE:.0%} of its bandwidth in updates, and at least "
        f"{LAUNCH_SECONDS * layers * 1e3:.1f} ms per decoding step (the host launches {layers} layers).",
    ]
    if workload.redraws:
        notes.append(
            f"Sampling covers one round; dynamic sampling adds up to {workload.redraws} more for "
            "zero-advantage groups."
        )
    if workload.world > 1:
        notes.append("Times exclude communication between devices.")
    if workload.tuning.quantize:
        notes.append("4-bit weights: times exclude dequantisation; activations are those of 16-bit weights.")
    known = ("torch.optim.AdamW", "torch.optim.SGD")
    if workload.method != "zero_shot" and not (
        workload.optimizer.startswith(known) or "8bit" in workload.optimizer
    ):
        notes.append(f"The optimiser {workload.optimizer} is unknown to the plan and counted as AdamW.")
    return notes
