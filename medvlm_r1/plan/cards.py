"""GPUs with their published figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        memory: bytes; the published GB taken as 1e9, a little less than the driver reports.
        flops: dense bf16 operations per second, with fp32 accumulation.
        tf32_flops: dense TF32 operations per second.
        bandwidth: memory bandwidth in bytes per second.
        link: bytes per second to other GPUs of its machine, in one direction: NVLink, else PCIe 4.0 x16.
    """

    name: str
    memory: float
    flops: float
    tf32_flops: float
    bandwidth: float
    link: float


# Source: NVIDIA's data sheets, without sparsity; links at half of the published sum of both directions.
CARDS = {
    "a100_40gb": Card("A100 40 GB", 40e9, 312e12, 156e12, 1.555e12, 300e9),
    "a100_80gb": Card("A100 80 GB", 80e9, 312e12, 156e12, 2.039e12, 300e9),
    "h100_80gb": Card("H100 80 GB SXM", 80e9, 989e12, 494e12, 3.35e12, 450e9),
    "h200_141gb": Card("H200 141 GB SXM", 141e9, 989e12, 494e12, 4.8e12, 450e9),
    "l40s_48gb": Card("L40S 48 GB", 48e9, 362e12, 183e12, 0.864e12, 32e9),
    "rtx_4090_24gb": Card("RTX 4090 24 GB", 24e9, 165e12, 82.6e12, 1.008e12, 32e9),
    "rtx_a6000_48gb": Card("RTX A6000 48 GB", 48e9, 155e12, 77e12, 0.768e12, 32e9),
}
