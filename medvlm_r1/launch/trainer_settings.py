"""Check arguments of Lightning's trainer that it refuses late, or that have no effect or do harm here.

Training takes its optimiser steps by hand, the data module shares out the questions, and every run has its
own loggers, callbacks and folder.
"""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Argument -> values that change nothing here, and the key or option that does what it promises.
_NO_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "gradient_clip_val": ((None,), "method.optim.max_grad_norm"),
    "gradient_clip_algorithm": ((None,), "method.optim.max_grad_norm, which clips by norm"),
    "accumulate_grad_batches": (
        (None, 1),
        "model.recipe.micro_batch (prompts in a pass) and model.recipe.prompts_per_step (of a step)",
    ),
    "limit_predict_batches": ((None,), "trainer.limit_test_batches"),
    "reload_dataloaders_every_n_epochs": ((None, 0), "the data group: its questions are read once"),
    "sync_batchnorm": ((None, False), "another model: none here has batch norm"),
    "model_registry": ((None,), "medvlm-r1 export --push-to-hub"),
    "logger": ((), "the logger group, such as logger=csv"),
    "callbacks": ((), "+callbacks.NAME={_target_: ...}"),
}
# Argument -> values that a run can work with, and the key or option to use in place of others.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "precision": (
        ("32-true", 32, "32", None),
        "model.recipe.dtype=bfloat16 for weights and arithmetic in bf16",
    ),
    "inference_mode": ((False,), "leave it out: training needs tensors that a validation has made"),
    "use_distributed_sampler": ((False,), "leave it out: the data module shares out the questions"),
    "fast_dev_run": ((None, False, 0), "debug=fast: this one writes no checkpoint and no metrics"),
    "barebones": ((None, False), "debug=profiler: this one writes no checkpoint and no metrics"),
    "accelerator": (("auto", "cpu", "gpu", "cuda", "mps", "tpu"), "auto, gpu or cpu"),
}
_BATCHES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


def check_trainer(cfg: DictConfig) -> None:
    """Check ``cfg.trainer`` and what it needs of other groups; raises ``ValueError`` with key and remedy."""
    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    trains = "optim" in cfg.method
    for name, (idle, remedy) in _NO_EFFECT.items():
        if name in trainer and not _is_one_of(trainer[name], idle):
            raise ValueError(f"trainer.{name} has no effect here: use {remedy}")
    for name, (allowed, remedy) in _FIXED.items():
        if name in trainer and not _is_one_of(trainer[name], allowed):
            raise ValueError(f"trainer.{name} is {trainer[name]!r:.60}: use {remedy}")
    _check_devices(trainer["devices"])
    for name in (*_BATCHES, "val_check_interval"):
        if trainer.get(name) is not None:
            _check_batches(name, trainer[name], zero=name in ("overfit_batches", "limit_val_batches"))
    if trainer.get("limit_val_batches") == 0 and not trainer.get("overfit_batches"):
        raise ValueError("trainer.limit_val_batches is 0: a run ends with a validation, give it at least 1")
    if trains:
        _check_length(trainer)
    for name, callback in (("enable_checkpointing", "best"), ("enable_progress_bar", "progress")):
        if trainer.get(name) is False and (cfg.get("callbacks") or {}).get(callback):
            raise ValueError(f"trainer.{name} is false: add '~callbacks.{callback}', which needs it")
    if trainer["default_root_dir"] != cfg.run_folder:
        raise ValueError("trainer.default_root_dir is the run's folder: use paths.outputs for its parent")


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in allowed)  # True is no 1


def _check_devices(value: Any) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and (value >= 1 or value == -1)
    is_list = isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value)
    if not (is_count or is_list or value == "auto"):
        raise ValueError(
            f"trainer.devices is {value!r:.60}: give a number, -1 or auto for all devices, or a list of ids"
        )


def _check_batches(name: str, value: Any, zero: bool) -> None:
    """Check a number of batches, which is an integer, or a fraction of an epoch or set."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (0 < value <= 1 or (value > 1 and value == int(value)) or (zero and value == 0)):
        return
    unit = "steps" if name == "val_check_interval" else "batches"
    raise ValueError(
        f"trainer.{name} is {value!r:.60}: give {unit} (an integer, at least 1), or a fraction "
        "(above 0, at most 1.0)"
    )


def _check_length(trainer: Mapping[str, Any]) -> None:
    """Check that training has an end and at least one step."""
    epochs, updates = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    for name, value in (("max_epochs", epochs), ("max_steps", updates)):
        if value == 0:
            raise ValueError(
                f"trainer.{name} is 0, which trains nothing: use method=zero_shot to evaluate only"
            )
    if epochs in (None, -1) and updates == -1:
        raise ValueError("trainer.max_epochs and trainer.max_steps are without limit: give one of them")
    if (limit := trainer.get("max_time")) is not None:
        from lightning.pytorch.callbacks import Timer

        try:
            Timer(duration=limit)
        except Exception as error:
            raise ValueError(
                f"trainer.max_time is {limit!r:.60}: give days, hours, minutes and seconds as '00:12:00:00'"
            ) from error
