"""Which weights of a model are trained, and which are quantized."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from medvlm_r1.policy.forward.model import Model
from medvlm_r1.runs.places import pip_install

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Tuning:
    """Which parameters are trained.

    Attributes:
        train: ``all`` weights, the ``language_model`` alone, an ``adapter``, or ``nothing``.
        quantize: ``nf4`` quantizes the language model's linear layers to 4 bits (QLoRA, arXiv 2305.14314);
            such weights cannot be trained.
        lr_scale: factor of the learning rate for this choice; methods interpolate it.

    Raises:
        ValueError: a value is unknown, or two do not go together.
    """

    train: Literal["all", "language_model", "adapter", "nothing"] = "all"
    adapter: "PeftConfig | None" = None
    quantize: Literal["nf4"] | None = None
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.train not in ("all", "language_model", "adapter", "nothing"):
            raise ValueError(
                f"peft.train is {self.train!r}: use 'all', 'language_model', 'adapter' or 'nothing'"
            )
        if (self.train == "adapter") != (self.adapter is not None):
            raise ValueError(
                f"peft.train is {self.train!r} and peft.adapter is {'set' if self.adapter else 'null'}: "
                "train=adapter needs an adapter and no other choice takes one, as in peft=lora"
            )
        if self.quantize not in (None, "nf4"):
            raise ValueError(f"peft.quantize is {self.quantize!r}: use 'nf4' or null")
        if self.quantize and self.train in ("all", "language_model"):
            raise ValueError("4-bit weights cannot be trained: take peft=qlora, or peft=nf4 to evaluate")
        if getattr(self.adapter, "lora_dropout", 0.0):
            raise ValueError(
                "peft.adapter.lora_dropout must be 0: dropout makes sampler and trainer disagree"
            )

    def quantization(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` for quantized weights with arithmetic in ``dtype``.

        Raises:
            ValueError: bitsandbytes is not installed.
        """
        if self.quantize is None:
            return {}
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise ValueError(
                f"4-bit weights need the package bitsandbytes: {pip_install('quantized')}"
            ) from None
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # The vision tower is a third of the 2B model and loses most accuracy by quantization.
            llm_int8_skip_modules=["model.visual", "lm_head"],
        )
        # Weights are quantized on the device that loads them: by default the first GPU, for every rank.
        rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
        return {"quantization_config": config, "device_map": {"": device}}

    def apply(self, model: PreTrainedModel) -> Model:
        """Freeze the weights that are not trained, and add the adapter."""
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # On such a CPU, bitsandbytes repacks the weights in the first evaluation into a layout
                # without a backward pass.
                module.support_avx512bf16_for_cpu = False
        if self.train == "adapter":
            from peft import get_peft_model  # seconds, and only adapters need it

            # Adapter in the dtype of the weights; the optimiser keeps fp32 copies of bf16 weights.
            return get_peft_model(model, self.adapter, autocast_adapter_dtype=False)
        if self.train != "all":
            model.requires_grad_(False)
        if self.train == "language_model":
            model.model.language_model.requires_grad_(True)
            model.lm_head.requires_grad_(True)
        return model
