"""Compose and build a run of the project: random weights of the genuine size, or the embedded model."""

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from genuine import qwen2_tokenizer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback, seed_everything
from transformers import Qwen2VLImageProcessorPil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from medvlm_r1 import run  # noqa: E402  (the composition root)
from medvlm_r1.launch.silence import silence_libraries  # noqa: E402
from medvlm_r1.policy.loading.architecture import load_config, meta_model  # noqa: E402

silence_libraries()  # before importing the libraries that it silences
from medvlm_r1.data.sample import VQASample  # noqa: E402
from medvlm_r1.prompts import Answer  # noqa: E402
from medvlm_r1.rewards import Rewards  # noqa: E402

# A run that writes nothing but metrics.csv, on phantoms.
PLAIN = ("data=phantom", "~callbacks", "logger=csv", "workers=0", "+trainer.enable_checkpointing=false")
PLAIN += ("+trainer.enable_progress_bar=false",)


def composed(overrides: Sequence[str]) -> Any:
    """Return the configuration of the paper's run with ``overrides``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=["+experiment=grpo_600", *overrides])


def built(cfg: Any, *callbacks: Callback) -> tuple[Any, Any, Any]:
    """Return module, data module and trainer of a configuration."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    module, data, trainer = run.build(cfg, instantiate(cfg.data))
    if cfg.model.path != "embedded":
        module.rewards = Rewards({"arbitrary": arbitrary}, {})
    trainer.callbacks.extend(callbacks)
    return module, data, trainer


def arbitrary(answer: Answer, sample: VQASample) -> float:
    """:func:`reward_of` as a reward term."""
    return reward_of(answer.text)


def reward_of(text: str) -> float:
    """An arbitrary reward: random weights earn no real one, and equal rewards give no gradient."""
    return zlib.crc32(text.encode()) % 5 / 4


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_checkpoint(folder: Path, model: str = "qwen2_vl_2b") -> int:
    """Write a Hugging Face directory with the genuine configuration and tokenizer, and random bf16 weights.

    ``model`` is an option of ``conf/model``; returns the number of parameters.
    """
    config = load_config(composed([f"model={model}"]).model.path)
    config.text_config.pad_token_id = 151643
    weights = random_weights(config, device())
    weights.generation_config.update(eos_token_id=[151645, 151643], pad_token_id=151643)
    weights.save_pretrained(folder)
    qwen2_tokenizer().save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    return sum(p.numel() for p in weights.parameters())


def random_weights(config: Any, device: torch.device) -> Any:
    """Return a bf16 model with normally distributed matrices, standard deviation 0.02."""
    torch.manual_seed(0)
    weights = meta_model(config, torch.bfloat16).to_empty(device=device)
    weights.tie_weights()  # to_empty allocated two tied matrices separately
    for name, parameter in weights.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return weights
