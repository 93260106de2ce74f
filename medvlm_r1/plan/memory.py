"""Bytes on one device, part by part, and which phases of a run hold them."""

from dataclasses import dataclass

import torch
from torch import nn

from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.workload import Workload
from medvlm_r1.policy.loading.architecture import cache_bytes_per_token

PHASES = ("sampling", "reference", "training", "update", "evaluation")
# Double-quantised NF4 (arXiv 2305.14314): 4 bits, an 8-bit scale for 64 weights, and for 256 of those
# scales one in fp32.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Of bitsandbytes: 8-bit moments have an fp32 scale for 256 entries; small tensors keep 32 bits.
_BLOCK, _SMALL = 256, 4096
# Assumed: the CUDA context, its libraries' work spaces.
CONTEXT = 1e9
# Of one row's vocabulary entry while a token is drawn: four fp32 scores, two int32 hashes.
_DRAW_BYTES = 4 * 4 + 2 * 4


@dataclass(frozen=True)
class Held:
    """Bytes of one part on one device, by phase; a phase that does not hold it is left out."""

    name: str
    at: dict[str, float]


@dataclass(frozen=True)
class Count:
    """Parameters of one part of the model."""

    name: str
    trained: int
    frozen: int


class Inventory:
    """The parameters of a model under one tuning: how many, how large, what is trained."""

    def __init__(self, meter: Meter, workload: Workload) -> None:
        policy = meter.policy()
        self.dtype = getattr(torch, workload.recipe.dtype)
        named = dict(policy.model.named_parameters())  # a tied head counts once, as the embedding
        self.total = sum(p.numel() for p in named.values())
        self.trained = [p.numel() for p in named.values() if p.requires_grad]
        self.adapter = sum(p.numel() for n, p in named.items() if "lora_" in n)
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
            key = name.split(".layers.")[-1].split(".blocks.")[-1].split(".")[0]
            whose = _part(name) + key if ".layers." in name or ".blocks." in name else "root"
            layers[whose] = layers.get(whose, 0) + parameter.numel()
        self.root = layers.pop("root")
        self.largest_layer = max(layers.values())
        names = ("language model", "vision tower", "adapter", "head")
        self.counts = []
        for part in names:
            members = [p for n, p in named.items() if _part(n) == part]
            trained = sum(p.numel() for p in members if p.requires_grad)
            self.counts.append(Count(part, trained, sum(p.numel() for p in members) - trained))

    def weight_bytes(self, quantized: bool) -> float:
        """Bytes of all weights on one device that splits nothing."""
        every = self.total * self.dtype.itemsize
        return every - self.quantized * (self.dtype.itemsize - NF4_BYTES) if quantized else every

    def language_bytes(self, quantized: bool) -> float:
        """Bytes that one decoding step reads: all weights but the tower's."""
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


def resident(workload: Workload, stock: Inventory) -> list[Held]:
    """What lies on the device whatever is computed."""
    width, trained = stock.dtype.itemsize, sum(stock.trained)
    split = workload.world if workload.strategy == "fsdp" else 1
    shared = workload.world if workload.strategy in ("fsdp", "zero2") else 1
    weights = stock.weight_bytes(bool(workload.tuning.quantize))
    if workload.strategy == "fsdp":
        weights += trained * (4 - width)  # split weights are their own masters
    narrow = width < 4 and workload.strategy != "fsdp"
    parts = [
        Held("CUDA context (assumed)", _in(PHASES, CONTEXT)),
        Held("weights", _in(PHASES, weights / split)),
    ]
    if workload.strategy == "fsdp":
        parts.append(Held("whole copy to sample from", _in(PHASES, stock.total * width)))
    if workload.method == "zero_shot":
        return parts
    if narrow:
        parts.append(Held("fp32 master copies", _in(PHASES, 4 * trained / shared)))
    parts.append(Held("optimiser's moments", _in(PHASES, moment_bytes(workload, stock.trained) / shared)))
    if workload.keeps_reference and not workload.tuning.adapter:
        kept = stock.total - (stock.tower if stock.tower_is_frozen else 0)
        parts.append(Held("reference", _in(PHASES, kept * width)))
    back = ("training", "update")
    gradient = 4 if workload.strategy == "fsdp" else width
    parts.append(Held("gradients", _in(back, gradient * trained / shared)))
    if workload.strategy == "ddp":
        parts.append(Held("DDP's gradient buckets", _in(back, width * trained)))
    if workload.strategy == "fsdp":
        # the outer module and two layers whole, and the outer module's gradients before they are split
        gathered = width * (stock.root + 2 * stock.largest_layer)
        reduced = (width + 4) * (stock.root if trained == stock.total else stock.largest_layer)
        parts.append(Held("gathered weights and gradients", {"training": gathered + reduced}))
    # AdamW of torch takes one fp32 tensor a parameter for its denominators.
    scratch = 4 * trained / shared if workload.optimizer.startswith("torch.optim.Adam") else 0.0
    fp32 = 4 * trained / shared if narrow else 0.0
    parts.append(Held("fp32 gradients and scratch", {"update": fp32 + scratch}))
    return parts


def transient(workload: Workload, stock: Inventory, meter: Meter) -> list[Held]:
    """What a phase holds while it computes, at the longest prompts and completions."""
    cache, working = {}, {}
    per_token = cache_bytes_per_token(meter.config, stock.dtype)
    draw = meter.config.text_config.vocab_size * _DRAW_BYTES
    rollouts = {"evaluation": (workload.recipe.evaluation_batch, 1, workload.answer)}
    if workload.method == "grpo":
        rollouts["sampling"] = (workload.prompts, workload.group_size, workload.completion)
    for phase, (prompts, group_size, tokens) in rollouts.items():
        lengths = workload.lengths(prompts, group_size, tokens)
        copies = prompts if workload.shares_prefix else lengths.rows
        cache[phase] = per_token * (copies * workload.prompt + lengths.rows * tokens)
        # the prompts' pass holds their part of the cache; later the whole cache stands beside the draws
        fullest = max(meter.prefill(lengths, workload.shares_prefix).peak, cache[phase] + draw * lengths.rows)
        working[phase] = fullest - cache[phase]
    parts = [Held("KV cache", cache)]
    if workload.method != "zero_shot":
        lengths = workload.lengths(workload.micro_batch, workload.group_size, workload.completion)
        cost = meter.training(lengths, workload.method == "grpo")
        parts.append(Held("activations", {"training": cost.held - cost.logits}))
        parts.append(Held("logits", {"training": cost.logits}))
        working["training"] = cost.peak - cost.held
        if workload.keeps_reference:
            working["reference"] = meter.scoring(lengths).peak
    if workload.tuning.quantize:  # a layer's weights are unpacked for each product
        working = {p: n + stock.largest_quantized * stock.dtype.itemsize for p, n in working.items()}
    return [*parts, Held("working memory of a pass", working)]


def _in(phases: tuple[str, ...], size: float) -> dict[str, float]:
    return dict.fromkeys(phases, size)
