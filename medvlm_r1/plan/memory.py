"""Bytes on one device, by part and by phase of the run."""

from dataclasses import dataclass

import torch
from torch import nn

from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.forward.vision import FEATURE_BYTES
from medvlm_r1.policy.loading.architecture import cache_bytes_per_token

PHASES = ("sampling", "reference", "training", "update", "evaluation")
# Double-quantised NF4 (arXiv 2305.14314): 4 bits per weight, an 8-bit scale per 64 weights, and an fp32
# scale per 256 of those scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# bitsandbytes: 8-bit moments have an fp32 scale per 256 entries; small tensors have 32-bit moments.
_BLOCK, _SMALL = 256, 4096
# Assumed: the CUDA context and the workspaces of its libraries.
CONTEXT = 1e9


@dataclass(frozen=True)
class MemoryPart:
    """Bytes of one part on one device, by phase; other phases have none of it."""

    name: str
    bytes: dict[str, float]


@dataclass(frozen=True)
class ParameterCount:
    name: str
    trained: int
    frozen: int


class Inventory:
    """Numbers and sizes of a model's parameters.

    Attributes:
        total: number of all parameters.
        trained: size of each trained parameter.
        tower: parameters of the vision tower.
        quantized: parameters that NF4 quantises; ``largest_quantized``: in the largest of these layers.
        root: parameters outside layers and blocks, which FSDP gathers with the outer module.
        largest_layer: parameters of the largest layer or block.
    """

    def __init__(self, meter: Meter, workload: Workload) -> None:
        policy = meter.policy()
        self.dtype = getattr(torch, workload.recipe.dtype)
        named = dict(policy.model.named_parameters())  # a tied head counts once, as the embedding
        self.total = sum(p.numel() for p in named.values())
        self.trained = [p.numel() for p in named.values() if p.requires_grad]
        self.tower = sum(p.numel() for n, p in named.items() if _part(n) == "vision tower")
        self.tower_is_frozen = policy.tower_is_frozen
        linears = {
            f"{n}.weight"
            for n, m in policy.model.named_modules()
            if isinstance(m, nn.Linear) and "language_model" in n and "lora_" not in n
        }
        sizes = [p.numel() for n, p in named.items() if n in linears]
        self.quantized, self.largest_quantized = sum(sizes), max(sizes, default=0)
        layers: dict[str, int] = {}
        for name, parameter in named.items():
            index = name.split(".layers.")[-1].split(".blocks.")[-1].split(".")[0]
            layer = _part(name) + index if ".layers." in name or ".blocks." in name else "root"
            layers[layer] = layers.get(layer, 0) + parameter.numel()
        self.root = layers.pop("root")
        self.largest_layer = max(layers.values())
        self.counts = []
        for part in ("language model", "vision tower", "adapter", "head"):
            parameters = [p for n, p in named.items() if _part(n) == part]
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            self.counts.append(ParameterCount(part, trained, sum(p.numel() for p in parameters) - trained))

    def weight_bytes(self, quantized: bool) -> float:
        """Bytes of all weights on one device, without sharding."""
        unquantized = self.total * self.dtype.itemsize
        return unquantized - self.quantized * (self.dtype.itemsize - NF4_BYTES) if quantized else unquantized

    def language_bytes(self, quantized: bool) -> float:
        """Bytes that one decoding step reads: all weights except the vision tower's."""
        return self.weight_bytes(quantized) - self.tower * self.dtype.itemsize


def _part(name: str) -> str:
    if "lora_" in name:
        return "adapter"
    if ".visual." in name:
        return "vision tower"
    return "head" if "lm_head" in name else "language model"


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
    one = workload.image_tokens * width * inventory.dtype.itemsize

    def size(*counts: int | None) -> float:
        return min(FEATURE_BYTES, one * sum(counts)) if None not in counts else FEATURE_BYTES

    if inventory.tower_is_frozen:
        return dict.fromkeys(PHASES, size(workload.train_images, workload.other_images))
    if workload.has_reference and not workload.tuning.adapter:  # features of the reference
        return dict.fromkeys(PHASES, size(workload.train_images))
    return {"evaluation": size(workload.other_images)}  # in the test: of the trained weights


def transient(workload: Workload, inventory: Inventory, meter: Meter) -> list[MemoryPart]:
    """Memory of each phase's computation, at the longest prompts and completions."""
    cache, working = {}, {}
    per_token = cache_bytes_per_token(meter.config, inventory.dtype)
    rollouts = {"evaluation": (workload.recipe.evaluation_batch, workload.answering)}
    if workload.method == "grpo":
        rollouts["sampling"] = (workload.prompts, workload.sampling)
    for phase, (prompts, sampling) in rollouts.items():
        shape = workload.shape(prompts, sampling.group_size, sampling.max_tokens)
        copies = prompts if workload.shares_prefix else shape.rows
        cache[phase] = per_token * (copies * workload.prompt_tokens + shape.rows * sampling.max_tokens)
        # The peak is at the prefill, which has the prompts' part of the cache, or at the last token.
        prefill = meter.prefill(shape, workload.shares_prefix).peak
        working[phase] = max(prefill - cache[phase], meter.decode(shape, sampling).peak)
    width = meter.config.text_config.hidden_size
    features = _image_features(workload, inventory, width)
    parts = [MemoryPart("keys and values", cache), MemoryPart("image features", features)]
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
