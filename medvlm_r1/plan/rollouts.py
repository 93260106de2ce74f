"""Rollouts of a run: the slots in which completions decode, and the passes of one call of the engine."""

import dataclasses
import math
from dataclasses import dataclass
from statistics import mean

from medvlm_r1.plan.inventory import Inventory
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.passes import Cost
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.schedule import PREFILL
from medvlm_r1.rollout.shared_prefix import attention_window

# Share of the rows that decode while slots empty, for lengths spread from 0 to the limit. Captured steps
# halve the rows: all decode for half of the steps, then 1/2, 1/4 and 1/8. Without a capture, rows are dropped
# as they end.
HALVED = 1 / 2 + 1 / 4 / 2 + 1 / 8 / 4 + 1 / 8 / 8
DROPPED = 1 / 2


@dataclass(frozen=True)
class Passes:
    """Equal passes of one rollout; ``recorded`` ones are replayed as a CUDA graph."""

    cost: Cost
    count: float
    recorded: bool = False


def slots(workload: Workload, inventory: Inventory, sampling: Sampling, prompts: int) -> CacheShape:
    """Shape of the completions that decode together in a rollout of ``prompts``."""
    if workload.shares_prefix:
        size = (prompts, workload.prompt_tokens, workload.records)
        return workload.engine.shape(inventory.policy, sampling, *size)
    return CacheShape(prompts * sampling.group_size, 1, workload.prompt_tokens, sampling.max_tokens)


def rollout_passes(
    workload: Workload, inventory: Inventory, meter: Meter, sampling: Sampling, prompts: int, images: int
) -> list[Passes]:
    """Passes of one call of the engine, for completions of half the limit on average.

    While prompts wait, all slots decode, and completions that end are replaced: each takes its length, and
    half of the interval in which the host reads which have ended. A group takes as long as its longest
    completion: the limit. Then slots empty, until the last completion reaches the limit, and on average
    :data:`HALVED` of the rows decode.

    Args:
        images: different images of the prompts.
    """
    shape, limit = slots(workload, inventory, sampling, prompts), sampling.max_tokens
    if not workload.shares_prefix:
        whole = workload.shape(prompts, sampling.group_size, 1)
        decode = meter.decode(shape, max(1, limit // 2), sampling)
        return [Passes(meter.prefill(whole, shared=False), 1), Passes(decode, limit)]
    engine, waiting = workload.engine, max(0, prompts - shape.prompts)

    def prefill(count: int, total: int) -> Passes:
        size = workload.shape(count, 1, 1, images=-(-count * images // prompts))
        return Passes(meter.prefill(size), total / count)

    def decode(shape: CacheShape, window: int, steps: float) -> Passes:
        return Passes(meter.decode(shape, window, sampling), steps, workload.records)

    windows = mean(attention_window(length, limit, workload.records) for length in range(1, limit + 1))
    share = (HALVED if workload.records else DROPPED) if engine.compact else 1
    tail = _part(shape, share)
    passes = [prefill(min(PREFILL, shape.prompts), min(shape.prompts, prompts))]
    if waiting:
        taken = limit if sampling.group_size > 1 else limit / 2 + engine.sync_every / 2
        together = shape.prompts * engine.sync_every / taken  # prompts whose slots empty between two reads
        passes.append(prefill(min(PREFILL, max(1, round(together))), waiting))
        passes.append(decode(shape, limit, waiting / shape.prompts * taken))
    return [*passes, decode(tail, round(windows), limit)]


def _part(shape: CacheShape, share: float) -> CacheShape:
    """A share of the rows, of at least one prompt."""
    if shape.prompts > 1:
        return dataclasses.replace(shape, prompts=math.ceil(share * shape.prompts))
    return dataclasses.replace(shape, group_size=math.ceil(share * shape.group_size))
