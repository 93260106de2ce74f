"""Seconds of a run's phases, estimated from operations, bytes and kernel launches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medvlm_r1.plan.inventory import NF4_BYTES, Inventory
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.memory import moment_bytes
from medvlm_r1.plan.passes import Cost
from medvlm_r1.plan.rollouts import rollout_passes
from medvlm_r1.plan.workload import Workload
from medvlm_r1.rollout.engine import Sampling

# Assumed shares of the published arithmetic, of the memory's bandwidth and of the links between GPUs.
UTILISATION = 0.4
BANDWIDTH_SHARE = 0.7
# Assumed seconds of one kernel: the host's to launch it, and the GPU's to start it from a CUDA graph.
LAUNCH_SECONDS = 9e-6
GRAPH_SECONDS = 1.3e-6
# Assumed bytes per second of a checkpoint, until it is on disk.
DISK_BANDWIDTH = 1e9


@dataclass(frozen=True)
class PhaseCost:
    """One phase of a training step on one device."""

    phase: str
    flops: float
    traffic: float
    launches: float
    seconds: float


def sum_phases(name: str, costs: Sequence[PhaseCost]) -> PhaseCost:
    """The costs as one."""
    totals = ("flops", "traffic", "launches", "seconds")
    return PhaseCost(name, *(sum(getattr(cost, total) for cost in costs) for total in totals))


class Clock:
    """Estimates the seconds of the phases of one run, on one of its devices."""

    def __init__(self, workload: Workload, inventory: Inventory, meter: Meter) -> None:
        self.workload, self.inventory, self.meter = workload, inventory, meter
        card = workload.card
        rate = card.flops if workload.recipe.dtype == "bfloat16" else card.tf32_flops
        self._rate, self._bandwidth = UTILISATION * rate, BANDWIDTH_SHARE * card.bandwidth
        self._link = BANDWIDTH_SHARE * card.link

    def seconds(self, cost: Cost, recorded: bool = False) -> float:
        """Seconds of a pass: of its arithmetic or of its bytes, whichever takes longer.

        Kernels of a CUDA graph (``recorded``) run one after another, each with a start; otherwise the host
        launches them while earlier ones run.
        """
        work = max(cost.flops / self._rate, cost.traffic / self._bandwidth)
        if recorded:
            return work + cost.launches * GRAPH_SECONDS
        return max(work, cost.launches * LAUNCH_SECONDS)

    def step(self) -> list[PhaseCost]:
        """Phases of one training step, with completions of mean length."""
        run, meter = self.workload, self.meter
        phases = []
        if run.method == "grpo":
            phases.append(self.rollout("sampling", run.prompts, run.sampling, run.prompts))
        shape = run.shape(run.pass_prompts, run.sampling.group_size, run.mean_completion)
        if scored := run.reference_passes * run.micro_batches:
            phases.append(self._phase("reference", self._dequantized(meter.scoring(shape)), scored))
        training = self._dequantized(meter.training(shape, run.method == "grpo"), passes=2)
        phases.append(self._phase("training", training, run.micro_batches * run.num_iterations))
        if run.world_size > 1:
            moved = self._communicated()
            phases.append(PhaseCost("communication", 0, moved, 0, moved / self._link))
        phases.append(self._phase("update", Cost(traffic=self._update_bytes()), run.updates))
        return phases

    def rollout(self, phase: str, prompts: int, sampling: Sampling, images: int) -> PhaseCost:
        """One call of the engine, with ``images`` different images."""
        model = self.workload, self.inventory, self.meter
        passes = rollout_passes(*model, sampling, prompts, images)
        return sum_phases(
            phase,
            [self._phase(phase, self._dequantized(p.cost), p.count, p.recorded) for p in passes],
        )

    def evaluation(self) -> float | None:
        """Seconds of all evaluations of the run; ``None`` if the number of questions is unknown."""
        run, batch = self.workload, self.workload.recipe.evaluation_batch
        asked = run.questions
        if asked.evaluations is None:
            return None

        def seconds(questions: int, answers: int) -> float:
            full, rest = divmod(math.ceil(questions / run.world_size), batch)
            batches = [(batch, full), (rest, 1)]
            return sum(
                count * self.rollout("evaluation", size * answers, run.answering, size).seconds
                for size, count in batches
                if size and count
            )

        return asked.validations * seconds(asked.validation, 1) + seconds(asked.test, asked.answers)

    def _phase(self, name: str, cost: Cost, times: float = 1, recorded: bool = False) -> PhaseCost:
        total = cost * times
        return PhaseCost(
            name, total.flops, total.traffic, total.launches, times * self.seconds(cost, recorded)
        )

    def _dequantized(self, cost: Cost, passes: int = 1) -> Cost:
        """Add the bytes of writing 4-bit weights out in the model's dtype, ``passes`` times."""
        if not self.workload.tuning.quantize:
            return cost
        weights, itemsize = self.inventory.quantized, self.inventory.dtype.itemsize
        return cost + Cost(traffic=passes * weights * (NF4_BYTES + itemsize))

    def _update_bytes(self) -> float:
        """Traffic of clipping and of a fused optimiser step, on one device."""
        run, itemsize = self.workload, self.inventory.dtype.itemsize
        trained = sum(self.inventory.trained)
        size = 4 if run.strategy == "fsdp" else itemsize
        clipping = 3 * size  # a norm; a product, read and written
        copies = (size + 4) + (4 + size) if size < 4 else 0  # gradients to fp32, masters to weights
        moments = moment_bytes(run, self.inventory.trained)
        total = trained * (clipping + copies + 4 + 2 * 4) + 2 * moments
        return total / run.shards

    def _communicated(self) -> float:
        """Bytes that one device sends in a step, in rings over all devices."""
        run, inventory = self.workload, self.inventory
        share = (run.world_size - 1) / run.world_size
        trained, itemsize = sum(inventory.trained), inventory.dtype.itemsize
        if run.strategy == "ddp":  # each update: reduce-scatter and all-gather of the gradients
            return 2 * share * run.updates * trained * itemsize
        passes = run.micro_batches * run.num_iterations
        scored = int(run.scores_old) * run.micro_batches
        gathered = (2 * passes + scored) * inventory.total * itemsize  # layer by layer, forward and backward
        reduced = passes * trained * 4
        whole = trained * 4  # weights for the sampling model
        return share * (gathered + reduced + whole)
