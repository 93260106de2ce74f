"""Ranges of numbers in the configuration, by the constructor that they go to.

A range holds for subclasses too. A number without one is finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included unless ``open_low`` or ``open_high``.

    NaN is in no range; infinity is in those that name it.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = True

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:g}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high))) or "finite"


FINITE = Range(open_low=True)
POSITIVE = Range(0, open_low=True)  # and finite
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SIZE = Range(0, open_low=True, open_high=False)  # infinity is no limit
SHARE = Range(0, 1, open_high=False)
RATE = Range(0, 1, open_low=True, open_high=False)  # of learning; a probability mass; a small number
SECONDS = Range(0, 1e6, open_low=True)  # what a socket takes

# Class or function -> parameter -> range.
RANGES: dict[str, dict[str, Range]] = {
    "RunSettings": {"seed": Range(0, 2**32 - 1, open_high=False), "workers": NOT_NEGATIVE},
    "GRPO": {
        **dict.fromkeys(("micro_batch", "num_iterations", "num_minibatches"), COUNT),
        "beta": Range(0, 1000, open_high=False),
        "dynamic_sampling_rounds": NOT_NEGATIVE,
        "overlong_buffer": Range(0, 1),
    },
    "SFT": {"micro_batch": COUNT},
    "VLMModule": {"max_completion_tokens": COUNT},
    "OptimizerSettings": {
        "lr": RATE,
        **dict.fromkeys(("lr_scale", "batch_scale"), Range(0, 1e6, open_low=True)),
        "warmup_steps": NOT_NEGATIVE,
        "max_grad_norm": NOT_NEGATIVE,
        "max_skipped_updates": COUNT,
    },
    "Sampling": {
        "group_size": COUNT,
        "max_tokens": COUNT,
        "temperature": Range(0, 100),
        "top_p": RATE,
        "top_k": NOT_NEGATIVE,
    },
    "PolicyLoss": {"clip_low": SHARE, "clip_high": NOT_NEGATIVE, "tis_cap": COUNT},
    "GroupRelative": {"eps": RATE},
    "PerTerm": {"eps": RATE},
    "Asymmetric": {"alpha": RATE},
    "Recipe": {
        **dict.fromkeys(("grpo_lr", "sft_lr"), RATE),
        **dict.fromkeys(
            ("epochs", "prompts_per_step", "group_size", "micro_batch", "evaluation_batch"), COUNT
        ),
        **dict.fromkeys(("max_prompt_tokens", "max_completion_tokens"), COUNT),
        **dict.fromkeys(("min_pixels", "max_pixels", "image_size"), COUNT),
    },
    "Tuning": {"lr_scale": Range(0, 1e6, open_low=True)},
    "LoraConfig": {"r": COUNT, "lora_alpha": POSITIVE, "lora_dropout": Range(0, 0, open_high=False)},
    "Optimizer": {
        **dict.fromkeys(("weight_decay", "eps"), SHARE),
        **dict.fromkeys(("momentum", "dampening"), Range(0, 1)),
    },
    "SharedPrefixEngine": {"sync_every": COUNT, "max_rows": COUNT, "max_memory_gb": SIZE},
    "ReferenceEngine": {"max_rows": COUNT},
    "VLLMEngine": {
        **dict.fromkeys(("max_rows", "max_completion_tokens"), COUNT),
        "max_images": NOT_NEGATIVE,
        "memory_share": Range(0, 1, open_low=True),
        "timeout": SECONDS,
    },
    "connect": {
        "concurrency": COUNT,
        "retries": NOT_NEGATIVE,
        "timeout": SECONDS,
        "patch": COUNT,
    },
    "Checkpoints": {"every": COUNT},
    "Alarms": {
        "zero_advantage_steps": COUNT,
        "truncated_fraction": SHARE,
        "sampling_logp_difference": SIZE,
    },
    "RolloutLogger": {
        "keep": COUNT,
        **dict.fromkeys(("show_every", "images_every", "images_per_step"), NOT_NEGATIVE),
    },
    "QuestionImages": {"per_test_set": NOT_NEGATIVE},
    "ImageCache": {"limit": SIZE},
    "PhantomSource": {"n": COUNT, "shortcut": SHARE},
    "phantom_domains": {"n_train": COUNT, "n_validation": COUNT, "n_test": COUNT},
    "ModelParallelStrategy": {"tensor_parallel_size": Range(1, 1, open_high=False)},
    "Trainer": {
        "num_nodes": COUNT,
        "max_epochs": Range(-1),
        "max_steps": Range(-1),
        **dict.fromkeys(("min_epochs", "min_steps", "log_every_n_steps"), NOT_NEGATIVE),
        **dict.fromkeys(("check_val_every_n_epoch",), COUNT),
        "num_sanity_val_steps": Range(-1),
    },
}


def range_of(target: type | Callable, name: str) -> Range:
    """The range of a parameter of a class or function."""
    owners = target.__mro__ if isinstance(target, type) else (target,)
    return next((RANGES[o.__name__][name] for o in owners if name in RANGES.get(o.__name__, {})), FINITE)
