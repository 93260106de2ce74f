"""Does a run fit, and how long would it take? From the configuration alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvlm_r1.plan.cards import Card
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import PHASES, Count, Held, Inventory, moment_bytes, resident, transient
from medvlm_r1.plan.workload import Job
from medvlm_r1.policy.geometry import cache_bytes_per_token, geometry

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
        job: the run.
        counts: parameters of each part of the model.
        held: bytes of each part on one device, by phase.
        work: of one training step, phase by phase, at mean lengths; empty without training.
        answering: estimated seconds for one question of evaluation on one device.
        notes: what was assumed.
    """

    job: Job
    counts: tuple[Count, ...]
    held: tuple[Held, ...]
    work: tuple[Work, ...]
    answering: float
    notes: tuple[str, ...]

    @property
    def card(self) -> Card:
        return self.job.card

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that this run has."""
        none = {"grpo": (), "sft": ("sampling", "reference"), "zero_shot": PHASES[:-1]}[self.job.method]
        if self.job.method == "grpo" and not self.job.keeps_reference:
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
        if self.job.steps is None or self.job.evaluations is None:
            return None
        step = sum(work.seconds for work in self.work)
        return self.job.steps * step + self.job.evaluations * self.answering / self.job.world


def plan(job: Job, timed: bool = True) -> Plan:
    """Measure on the meta device; see :mod:`medvlm_r1.plan.measure`.

    Args:
        timed: estimate times too; without, ``work`` is empty and ``answering`` 0.
    """
    meter = Meter(geometry(job.path, job.revision), job.recipe, job.tuning, layout=job.layout)
    stock = Inventory(meter, job)
    work, answering = (), 0.0
    if timed:
        questions = job.recipe.evaluation_batch
        work = _step(job, stock, meter) if job.method != "zero_shot" else ()
        answering = _generate(job, stock, meter, questions, 1, job.answer)[1] / questions
    return Plan(
        job=job,
        counts=tuple(stock.counts),
        held=(*resident(job, stock), *transient(job, stock, meter)),
        work=work,
        answering=answering,
        notes=tuple(_notes(job, meter)),
    )


def candidates(job: Job) -> list[list[str]]:
    """Overrides that make a run smaller, in the order of what they change: time, rounding, what is trained.

    More devices come last, for they change nothing but cost most.
    """
    if job.method == "zero_shot":
        sizes = [job.recipe.evaluation_batch // n for n in (2, 4, 8, 16)]
        fewer = [[f"model.recipe.evaluation_batch={n}"] for n in sizes if n]
        return [
            *fewer,
            *([[]] if job.tuning.quantize else [["peft=nf4"], ["peft=nf4", *(fewer or [[]])[-1]]]),
        ]
    small = ["model.recipe.micro_batch=1"] if job.micro_batch > 1 else []
    again = [] if job.recipe.gradient_checkpointing else ["model.recipe.gradient_checkpointing=true"]
    every = [[], small, again, [*small, *again]]
    ways = list(every)
    if not job.tuning.adapter:
        if "8bit" not in job.optimizer and "SGD" not in job.optimizer:
            ways += [["optimizer=adamw_8bit", *way] for way in every]
        ways += [["peft=lora", *way] for way in every]
    if not job.tuning.quantize:
        ways += [["peft=qlora", *way] for way in every]
        for devices in (2, 4, 8):
            if devices > job.world and job.recipe.prompts_per_step % devices == 0:
                split = ["trainer=fsdp", f"trainer.devices={devices}"]
                if "8bit" in job.optimizer:  # 8-bit moments cannot be split
                    split.append("optimizer=adamw")
                ways += [[*split, *way] for way in ([], [*small, *again])]
    unique: list[list[str]] = []
    for way in ways:
        if way and way not in unique:
            unique.append(way)
    return unique


def remedies(job: Job, replan: Replan) -> dict[tuple[str, ...], Plan]:
    """The first candidate that fits on as many devices, and the first on more; each really planned."""
    found: dict[bool, tuple[tuple[str, ...], Plan]] = {}
    for way in candidates(job):
        more = any(override.startswith("trainer=") for override in way)
        if more in found or not way:
            continue
        made = replan(way)
        if made.fits:
            found[more] = tuple(way), made
    return dict(found[more] for more in sorted(found))


def _step(job: Job, stock: Inventory, meter: Meter) -> tuple[Work, ...]:
    """The phases of one training step on one device, with completions of mean length."""
    work = []
    if job.method == "grpo":
        work.append(
            Work("sampling", *_generate(job, stock, meter, job.prompts, job.group_size, job.completion))
        )
    lengths = job.lengths(job.micro_batch, job.group_size, job.mean)
    scored = int(job.keeps_reference) + int(job.scores_before)
    if scored:
        flops = scored * job.micro_batches * meter.scoring(lengths).flops
        work.append(Work("reference", flops, flops / _speed(job)))
    flops = job.micro_batches * job.passes * meter.training(lengths, job.method == "grpo").flops
    work.append(Work("training", flops, flops / _speed(job)))
    # weights, masters and gradients are read and written, moments too
    shared = job.world if job.strategy in ("fsdp", "zero2") else 1
    trained = sum(stock.trained)
    moved = 2 * (moment_bytes(job, stock.trained) + trained * (4 + 2 * stock.dtype.itemsize)) / shared
    seconds = job.updates * moved / (BANDWIDTH_SHARE * job.card.bandwidth)
    return (*work, Work("update", 0.0, seconds))


def _generate(
    job: Job, stock: Inventory, meter: Meter, prompts: int, group_size: int, limit: int
) -> tuple[float, float]:
    """Operations and seconds of one call of the rollout engine."""
    lengths = job.lengths(prompts, group_size, max(1, limit // 2))
    first = meter.prefill(lengths, job.shares_prefix).flops
    own = lengths.completion // 2
    each = meter.decode(lengths, own).flops
    copies = prompts if job.shares_prefix else lengths.rows
    read = stock.language_bytes(bool(job.tuning.quantize))
    read += (copies * job.prompt + lengths.rows * own) * cache_bytes_per_token(meter.config, stock.dtype)
    launch = LAUNCH_SECONDS * meter.config.text_config.num_hidden_layers
    latency = max(read / job.card.bandwidth, each / _speed(job), launch)
    return first + lengths.completion * each, first / _speed(job) + lengths.completion * latency


def _speed(job: Job) -> float:
    """Assumed operations per second."""
    return UTILISATION * (job.card.flops if job.recipe.dtype == "bfloat16" else job.card.tf32_flops)


def _notes(job: Job, meter: Meter) -> list[str]:
    width = f"{job.image} image tokens ({job.grid[0] // 2} x {job.grid[1] // 2}, the largest image)"
    counted = "its tokenizer" if job.exact_text else "3.8 characters a token"
    launch = LAUNCH_SECONDS * meter.config.text_config.num_hidden_layers * 1e3
    notes = [
        f"A prompt is {job.prompt} tokens: {width} and {job.text} of text (a typical question, {counted}).",
        "Memory is for the longest completions, all at once, counted by running the model's own code on the "
        "meta device; the allocator's fragmentation comes on top. A card's GB is taken as 1e9 bytes.",
        f"Times are an estimate: completions of half the limit on average, {UTILISATION:.0%} of the card's "
        f"dense {'bf16' if job.recipe.dtype == 'bfloat16' else 'TF32'} rate, {BANDWIDTH_SHARE:.0%} of its "
        f"bandwidth in updates, and at least {launch:.1f} ms for one decoding step (launching "
        f"{meter.config.text_config.num_hidden_layers} layers from the host).",
    ]
    if job.redraws:
        notes.append(
            f"Sampling is of one round; dynamic sampling adds up to {job.redraws} more, of the groups "
            "without reward spread."
        )
    if job.world > 1:
        notes.append("What devices send each other is not in the times.")
    if job.tuning.quantize:
        notes.append(
            "4-bit weights: activations are those of the unquantised model; unpacking costs more time."
        )
    known = job.optimizer.startswith(("torch.optim.AdamW", "torch.optim.SGD")) or "8bit" in job.optimizer
    if job.method != "zero_shot" and not known:
        notes.append(f"{job.optimizer} is not known here: counted as AdamW.")
    return notes
