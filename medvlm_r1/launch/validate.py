"""Check settings before data and weights are loaded."""

from importlib.util import find_spec
from os.path import exists
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from medvlm_r1.evaluate.controls import check_controls
from medvlm_r1.inference.endpoint_client import check_endpoint
from medvlm_r1.launch.parts import check_parts
from medvlm_r1.launch.suggest import SYNONYMS
from medvlm_r1.launch.trainer_settings import check_trainer
from medvlm_r1.launch.types import check_top, check_types
from medvlm_r1.reading.released import check_reading
from medvlm_r1.rollout.vllm_client import NO_TRUNCATION, check_vllm
from medvlm_r1.runs import status
from medvlm_r1.runs.places import pip_install
from medvlm_r1.runs.renames import ADDED, KEYS, renamed, renamed_config
from medvlm_r1.runs.shorten import clip

# Parts that `track` may list.
TRACK = ("completions", "images", "files")
# Keys that may differ between two attempts of one run: they do not change its result.
FREE = ("resume", "retry", "ckpt_path", "overwrite", "workers", "image_cache", "logger", "callbacks")
FREE += ("run_folder", "paths", "evaluation", "optimized_metric", "tags", "track")
FREE += ("rollout.python", "rollout.url", "rollout.folder", "rollout.timeout", "rollout.log")
FREE += ("rollout.memory_share", "rollout.transfer")


def check_settings(cfg: DictConfig) -> None:
    """Check what the configuration alone can show; raises ``ValueError``."""
    for old in KEYS:
        if OmegaConf.select(cfg, old, throw_on_resolution_failure=False) is not None:
            raise ValueError(f"`{old}` is now `{renamed(old)}`: rename it in the file that sets it")
    check_top(cfg)
    if not cfg.get("rollout") and "url" not in cfg.model:
        raise ValueError("rollout is null: a local model needs an engine, such as rollout=shared_prefix")
    if cfg.select not in ("last", "best"):
        raise ValueError(f"select is {cfg.select!r}: use 'last' or 'best'")
    check_tracking(cfg)
    check_controls(cfg.controls, served="url" in cfg.model)
    check_reading(cfg.evaluation.reading, cfg.prompt.name)
    check_trainer(cfg)
    for name in SYNONYMS.keys() & cfg.keys():  # added with +
        raise ValueError(f"nothing reads the key {name!r}: use {' or '.join(SYNONYMS[name])}")
    if cfg.resume not in (None, "auto"):
        raise ValueError(f"resume is {cfg.resume!r}: use auto, or leave it out")
    if cfg.ckpt_path not in (None, "last") and not exists(cfg.ckpt_path):
        raise ValueError(f"ckpt_path: there is no {clip(cfg.ckpt_path)}")
    if cfg.overwrite and (cfg.resume or cfg.ckpt_path):
        raise ValueError("overwrite=true deletes the run that resume or ckpt_path needs: give one of them")
    if missing := OmegaConf.missing_keys(cfg):
        raise ValueError(f"missing: {', '.join(f'{key}=...' for key in sorted(missing))}")


def check_tracking(cfg: DictConfig) -> None:
    """Check that the loggers' packages are installed, and ``tags`` and ``track``; raises ``ValueError``."""
    for package in ("wandb", "mlflow"):
        if package in (cfg.get("logger") or {}) and not find_spec(package):
            raise ValueError(f"this logger needs the package {package}: {pip_install(package)}")
    for key in ("tags", "track"):
        if not isinstance(cfg[key], ListConfig):
            raise ValueError(f"{key} is {cfg[key]!r}: give a list, '{key}=[a,b]'")
    if unknown := set(cfg.track) - set(TRACK):
        raise ValueError(f"track has {', '.join(sorted(unknown))}: choose from {', '.join(TRACK)}")


def check_model(cfg: DictConfig) -> None:
    """Check that the model is available and fits method, peft option and trainer; raises ``ValueError``."""
    check_types(cfg)
    trains, is_endpoint = "optim" in cfg.method, "url" in cfg.model
    strategy = str(OmegaConf.select(cfg, "trainer.strategy._target_"))
    splits = strategy.endswith("ModelParallelStrategy")
    if trains and is_endpoint:
        remedy = "take +experiment=zero_shot or method=zero_shot"
        raise ValueError(f"an endpoint can be evaluated, not trained: {remedy}")
    if is_endpoint and cfg.method.get("sampling"):
        raise ValueError("an endpoint gives one answer per prompt, greedily: take method=zero_shot")
    if trains and cfg.peft.train == "nothing":
        raise ValueError("this peft option trains nothing: take peft=qlora, or method=zero_shot to evaluate")
    if cfg.select == "best" and not (trains and (cfg.get("callbacks") or {}).get("best")):
        raise ValueError("select=best needs a method that trains (grpo, sft, ...), and callbacks.best")
    if splits and (cfg.peft.quantize or is_endpoint):
        what = "an endpoint's weights" if is_endpoint else "weights held in 4 bits"
        raise ValueError(f"{what} cannot be split over devices: take trainer=single or trainer=ddp")
    if splits and "8bit" in cfg.optimizer._target_:
        raise ValueError("8-bit moments cannot be split over devices: take optimizer=adamw with trainer=fsdp")
    check_parts(cfg)
    if is_endpoint:
        check_endpoint(cfg.model.url, cfg.model.name, cfg.model.api_key_variable)
    else:
        from medvlm_r1.policy.loading.resolve import check_weights

        check_weights(cfg.model.path, cfg.model.revision, cfg.trainer.accelerator)
        if cfg.rollout._target_.endswith(".VLLMEngine"):
            if cfg.peft.quantize:
                raise ValueError("vLLM cannot take weights held in 4 bits: take rollout=shared_prefix")
            sampling = cfg.method.get("sampling") or {}
            if sampling.get("top_k") or sampling.get("top_p", 1) < 1:
                raise ValueError(NO_TRUNCATION)
            check_vllm(cfg.rollout.python, cfg.rollout.url, cfg.rollout.timeout)


def check_same_run(cfg: DictConfig, folder: Path) -> None:
    """Raise ``ValueError`` unless settings and version are those that the run was started with."""
    from medvlm_r1.report.run_folder import flatten  # loads pandas: import it only if it is needed

    if not (path := folder / "config.yaml").exists():
        return
    again = "start it again with overwrite=true"
    old, new = (OmegaConf.to_container(c, resolve=True) for c in (OmegaConf.load(path), cfg))
    if renamed_config(old) != old:
        if status.result_of(folder) == status.FINISHED:
            return
        commit = next((f" (commit {a['commit']})" for a in status.attempts(folder) if a.get("commit")), "")
        made = f"an earlier version of medvlm_r1{commit} made this run, and this one cannot resume it"
        raise ValueError(f"{folder}: {made}: finish it with that version, or {again}")
    old, new = flatten(old), flatten(new)
    added = {key: old.get(ADDED[key], ADDED[key]) for key in ADDED.keys() & new.keys()}
    before = {key: value for key, value in added.items() if new[key] is not None} | old
    changed = [key for key in sorted(old.keys() | new.keys()) if before.get(key) != new.get(key)]
    if changed := [key for key in changed if not {key, key.split(".")[0]} & set(FREE)]:
        listed = ", ".join(f"{key} was {before.get(key)} and is {new.get(key)}" for key in changed[:4])
        raise ValueError(
            f"{folder} was started with other settings ({listed}): rerun its command with these as they "
            f"were, or {again}"
        )
