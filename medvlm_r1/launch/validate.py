"""Settings that cannot be, or not together: told before data and weights are loaded."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from medvlm_r1.runs.renames import KEYS, renamed

# Keys that may differ between two attempts of one run: they do not change its result.
FREE = ("resume", "retry", "ckpt_path", "overwrite", "workers", "image_cache", "logger", "callbacks")
FREE += ("run_folder",)


def check_settings(cfg: DictConfig) -> None:
    """What can be told from the configuration alone.

    Raises:
        ValueError: with what to give instead.
    """
    from medvlm_r1.evaluate.controls import check_controls

    for old in KEYS:
        if OmegaConf.select(cfg, old, throw_on_resolution_failure=False) is not None:
            raise ValueError(f"`{old}` is now `{renamed(old)}`: rename it in the file that sets it")
    if cfg.select not in ("last", "best"):
        raise ValueError(f"select is {cfg.select!r}: use 'last' or 'best'")
    check_controls(cfg.controls, served="url" in cfg.model)
    if cfg.resume not in (None, "auto"):
        raise ValueError(f"resume is {cfg.resume!r}: use auto, or leave it out")
    if cfg.overwrite and (cfg.resume or cfg.ckpt_path):
        raise ValueError("overwrite=true deletes what resume or ckpt_path would go on from: give one of them")
    if missing := OmegaConf.missing_keys(cfg):
        raise ValueError(f"missing: {', '.join(f'{key}=...' for key in sorted(missing))}")


def check_model(cfg: DictConfig) -> None:
    """Stop within seconds where the model cannot be had, or cannot do what is wanted of it."""
    trains, is_endpoint = "optim" in cfg.method, "url" in cfg.model
    strategy = str(OmegaConf.select(cfg, "trainer.strategy._target_"))
    splits, deepspeed = (strategy.endswith(name) for name in ("ModelParallelStrategy", "DeepSpeedStrategy"))
    if trains and is_endpoint:
        raise ValueError(
            "an endpoint can be evaluated, not trained: take +experiment=zero_shot or method=zero_shot"
        )
    if trains and cfg.peft.train == "nothing":
        raise ValueError("this peft option trains nothing: take peft=qlora, or method=zero_shot to evaluate")
    if splits and (cfg.peft.quantize or is_endpoint):
        what = "an endpoint's weights" if is_endpoint else "weights held in 4 bits"
        raise ValueError(f"{what} cannot be split over devices: take trainer=single or trainer=ddp")
    if splits and "8bit" in cfg.optimizer._target_:
        raise ValueError("8-bit moments cannot be split over devices: take optimizer=adamw with trainer=fsdp")
    if deepspeed and (cfg.select == "best" or cfg.model.recipe.dtype != "bfloat16"):
        raise ValueError("trainer=deepspeed_zero2 wants model.recipe.dtype=bfloat16 and select=last")
    if not is_endpoint:
        from medvlm_r1.policy.loading.resolve import check_weights

        check_weights(cfg.model.path, cfg.model.revision, cfg.trainer.accelerator)
        return
    from medvlm_r1.inference.endpoint_client import check_endpoint

    check_endpoint(cfg.model.url, cfg.model.name, cfg.model.api_key_variable)


def check_same_run(cfg: DictConfig, folder: Path) -> None:
    """What goes on must be what was begun.

    Raises:
        ValueError: the folder's run was begun with other settings, of which four are named.
    """
    from medvlm_r1.report.run_folder import flatten  # which loads pandas: a mistake need not wait for it

    begun = folder / "config.yaml"
    if not begun.exists():
        return
    was, now = (flatten(OmegaConf.to_container(c, resolve=True)) for c in (OmegaConf.load(begun), cfg))
    keys = sorted(was.keys() | now.keys())
    changed = [key for key in keys if key.split(".")[0] not in FREE and was.get(key) != now.get(key)]
    if changed:
        listed = ", ".join(f"{key} was {was.get(key)} and is {now.get(key)}" for key in changed[:4])
        raise ValueError(
            f"{folder} was begun with other settings ({listed}): give the command that it was begun with, or "
            "overwrite=true to start it again"
        )
