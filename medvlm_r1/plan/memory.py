"""Bytes on one device, by part and by phase of the run."""

from dataclasses import dataclass

from medvlm_r1.plan.inventory import Inventory
from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.rollouts import slots
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.forward.vision import FEATURE_BYTES
from medvlm_r1.policy.loading.architecture import cache_bytes_per_token, image_token_width
from medvlm_r1.rollout.schedule import PREFILL

PHASES = ("sampling", "reference", "training", "update", "evaluation")
# bitsandbytes: 8-bit moments have an fp32 scale per 256 entries; small tensors have 32-bit moments.
_BLOCK, _SMALL = 256, 4096
# Assumed: the CUDA context and the workspaces of its libraries.
CONTEXT = 1e9


@dataclass(frozen=True)
class MemoryPart:
    """Bytes of one part on one device, by phase; other phases have none of it."""

    name: str
    bytes: dict[str, float]


def moment_bytes(workload: Workload, trained: list[int]) -> float:
    """Bytes of the optimiser's state; an unknown optimiser counts as AdamW."""
    if workload.optimizer.startswith("torch.optim.SGD"):
        return 4.0 * sum(trained) if workload.momentum else 0.0
    if "8bit" in workload.optimizer:
        return sum(2 * n * (1 + 4 / _BLOCK) if n >= _SMALL else 8 * n for n in trained)
    return 8.0 * sum(trained)


def resident(workload: Workload, inventory: Inventory) -> list[MemoryPart]:
    """Memory that does not depend on the batch: weights, copies, moments and gradients."""
    itemsize, trained = inventory.dtype.itemsize, sum(inventory.trained)
    fsdp = workload.strategy == "fsdp"
    weights = inventory.weight_bytes(bool(workload.tuning.quantize))
    if fsdp:
        weights += trained * (4 - itemsize)  # FSDP's shards are fp32 and serve as master weights
    has_masters = itemsize < 4 and not fsdp
    parts: list[MemoryPart] = []

    def add(name: str, size: float, *phases: str) -> None:
        parts.append(MemoryPart(name, dict.fromkeys(phases or PHASES, size)))

    add("CUDA context (assumed)", CONTEXT)
    add("weights", weights / workload.shards)
    if fsdp:
        add("full sampling model", inventory.total * itemsize)
    if workload.method == "zero_shot":
        return parts
    if has_masters:
        add("fp32 master copies", 4 * trained / workload.shards)
    add("optimiser's moments", moment_bytes(workload, inventory.trained) / workload.shards)
    if workload.has_reference and not workload.tuning.adapter:
        copied = inventory.total - (inventory.tower if inventory.tower_is_frozen else 0)
        add("reference", copied * itemsize)
    add("gradients", (4 if fsdp else itemsize) * trained / workload.shards, "training", "update")
    if workload.strategy == "ddp":
        add("DDP's gradient buckets", itemsize * trained, "training", "update")
    if fsdp:
        # the outer module and two layers gathered, and the outer module's gradients before reduce-scatter
        gathered = itemsize * (inventory.root + 2 * inventory.largest_layer)
        reduced = (itemsize + 4) * (inventory.root if trained == inventory.total else inventory.largest_layer)
        add("gathered layers", gathered + reduced, "training")
    if has_masters:
        add("fp32 gradients", 4 * trained, "update")
    # without fusing, torch's AdamW allocates one fp32 tensor per parameter for its denominators
    if workload.optimizer.startswith("torch.optim.Adam") and not workload.fused:
        add("optimiser's scratch", 4 * trained / workload.shards, "update")
    return parts


def checkpoint_bytes(workload: Workload, inventory: Inventory) -> tuple[float, float]:
    """Bytes on disk of last.ckpt, with everything that training needs, and of the trained weights alone."""
    trained, narrow = sum(inventory.trained), inventory.dtype.itemsize < 4
    weights = trained * (4 if workload.strategy == "fsdp" else inventory.dtype.itemsize)
    masters = 4 * trained if narrow and workload.strategy != "fsdp" else 0
    return weights + masters + moment_bytes(workload, inventory.trained), weights


def _image_features(workload: Workload, inventory: Inventory, width: int) -> dict[str, float]:
    """Bytes of cached image features by phase; see :class:`~medvlm_r1.policy.forward.vision.VisionCache`."""
    asked, one = workload.questions, workload.image_tokens * width * inventory.dtype.itemsize

    def size(*counts: int | None) -> float:
        return min(FEATURE_BYTES, one * sum(counts)) if None not in counts else FEATURE_BYTES

    if inventory.tower_is_frozen:
        return dict.fromkeys(PHASES, size(asked.train, asked.validation, asked.test))
    if workload.has_reference and not workload.tuning.adapter:  # features of the reference
        return dict.fromkeys(PHASES, size(asked.train))
    return {"evaluation": size(asked.test)}  # in the test: of the trained weights


def transient(workload: Workload, inventory: Inventory, meter: Meter) -> list[MemoryPart]:
    """Memory of each phase's computation, at the longest prompts and completions."""
    per_token = cache_bytes_per_token(meter.config, inventory.dtype)
    rollouts = {
        "evaluation": (workload.recipe.evaluation_batch * workload.questions.answers, workload.answering)
    }
    if workload.method == "grpo":
        rollouts["sampling"] = (workload.prompts, workload.sampling)
    cache, graphs, working = {}, {}, {}
    for phase, (prompts, sampling) in rollouts.items():
        shape = slots(workload, inventory, sampling, prompts)
        cache[phase] = per_token * shape.tokens
        step = meter.decode(shape, sampling.max_tokens, sampling).peak
        first = workload.shape(min(shape.prompts, PREFILL), 1, 1)
        # A pass over prompts returns their keys and values, which are then copied.
        working[phase] = max(meter.prefill(first, workload.shares_prefix).peak, step)
        graphs[phase] = step if workload.records else 0
    if workload.records and workload.engine.keep_memory:  # one memory and one pool, of the largest rollout
        cache, graphs = (dict.fromkeys(PHASES, max(sizes.values())) for sizes in (cache, graphs))
    features = _image_features(workload, inventory, image_token_width(meter.config))
    parts = [
        MemoryPart("keys and values", cache),
        MemoryPart("CUDA graphs", graphs),
        MemoryPart("image features", features),
    ]
    if workload.method != "zero_shot":
        shape = workload.shape(
            workload.pass_prompts, workload.sampling.group_size, workload.sampling.max_tokens
        )
        cost = meter.training(shape, workload.method == "grpo")
        parts.append(MemoryPart("activations", {"training": cost.saved - cost.logits}))
        parts.append(MemoryPart("logits", {"training": cost.logits}))
        working["training"] = cost.peak - cost.saved
        if workload.has_reference:
            working["reference"] = meter.scoring(shape).peak
    if workload.tuning.quantize:  # each product dequantises one layer's weights
        dequantized = inventory.largest_quantized * inventory.dtype.itemsize
        working = {phase: size + dequantized for phase, size in working.items()}
    return [*parts, MemoryPart("working memory", working)]
