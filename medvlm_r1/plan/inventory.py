"""Numbers and sizes of a model's parameters."""

from dataclasses import dataclass

import torch
from torch import nn

from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.workload import Workload

# Double-quantised NF4 (arXiv 2305.14314): 4 bits per weight, an 8-bit scale per 64 weights, and an fp32
# scale per 256 of those scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class ParameterCount:
    name: str
    trained: int
    frozen: int


class Inventory:
    """Numbers and sizes of a model's parameters.

    Attributes:
        policy: the model on the meta device.
        total: number of all parameters.
        trained: size of each trained parameter.
        tower: parameters of the vision tower.
        quantized: parameters that NF4 quantises; ``largest_quantized``: in the largest of these layers.
        root: parameters outside layers and blocks, which FSDP gathers with the outer module.
        largest_layer: parameters of the largest layer or block.
    """

    def __init__(self, meter: Meter, workload: Workload) -> None:
        self.policy = policy = meter.policy()
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
