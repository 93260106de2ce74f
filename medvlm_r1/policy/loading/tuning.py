"""What of a model is trained, and in how many bits the rest is held."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from medvlm_r1.policy.forward.model import Model

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Tuning:
    """Which parameters an optimiser moves.

    Attributes:
        train: ``all`` weights, the ``language_model`` alone, an ``adapter``, or ``nothing``.
        adapter: the adapter, for ``train="adapter"``.
        quantize: ``nf4`` holds the language model's linear layers in 4 bits (QLoRA, arXiv 2305.14314);
            such weights cannot be trained.
        lr_scale: the learning rate's factor that goes with this choice; methods refer to it.
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
                f"peft.train is {self.train!r} and peft.adapter is {'given' if self.adapter else 'null'}: "
                "an adapter is trained exactly where one is given, as in peft=lora"
            )
        if self.quantize not in (None, "nf4"):
            raise ValueError(f"peft.quantize is {self.quantize!r}: use 'nf4' or null")
        if self.quantize and self.train in ("all", "language_model"):
            raise ValueError(
                "weights held in 4 bits cannot be trained: take peft=qlora, or peft=nf4 to evaluate"
            )
        if getattr(self.adapter, "lora_dropout", 0.0):
            raise ValueError(
                "peft.adapter.lora_dropout must be 0: dropout makes sampler and trainer disagree"
            )

    def quantization(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of ``from_pretrained``; arithmetic is done in ``dtype``.

        Raises:
            ValueError: bitsandbytes is not installed.
        """
        if self.quantize is None:
            return {}
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise ValueError(
                "4-bit weights need the package bitsandbytes: pip install 'medvlm_r1[quantized]'"
            ) from None
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # The vision tower is a third of the small model and suffers most from rounding.
            llm_int8_skip_modules=["model.visual", "lm_head"],
        )
        # Weights are rounded where they are loaded: without a place, every rank would fill the first GPU.
        rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        place = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
        return {"quantization_config": how, "device_map": {"": place}}

    def apply(self, model: PreTrainedModel) -> Model:
        """Freeze what is not trained, and put the adapter in."""
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # In its first evaluation on such a CPU, bitsandbytes would repack the weights into a
                # layout that cannot be trained through.
                module.support_avx512bf16_for_cpu = False
        if self.train == "adapter":
            from peft import get_peft_model  # seconds, for those who have an adapter

            # Adapters in the weights' own type; the optimiser keeps fp32 copies of what is narrower.
            return get_peft_model(model, self.adapter, autocast_adapter_dtype=False)
        if self.train != "all":
            model.requires_grad_(False)
        if self.train == "language_model":
            model.model.language_model.requires_grad_(True)
            model.lm_head.requires_grad_(True)
        return model
