"""Build the parts that need neither questions nor weights, to learn early what their constructors refuse."""

import math

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

# Callbacks that may be built twice.
_CALLBACKS = ("medvlm_r1.", "lightning.pytorch.callbacks.")


def check_parts(cfg: DictConfig) -> None:
    """Build the parts that need neither questions nor weights: their constructors check what goes together.

    Raises:
        InstantiationException: a constructor refuses its values.
        ValueError: the method refuses its parts, the devices cannot share a step, or nothing logs a metric.
    """
    nodes = [cfg.model.recipe, cfg.prompt, cfg.reward, cfg.get("peft"), cfg.difficulty]
    nodes += [n for n in (cfg.get("callbacks") or {}).values() if n and n._target_.startswith(_CALLBACKS)]
    for node in filter(None, nodes):
        instantiate(node)
    parts = {
        name: instantiate(value) if OmegaConf.is_dict(value) else value
        for name, value in cfg.method.items()
        if name not in ("_target_", "_partial_")
    }
    method = get_object(cfg.method._target_)
    if "optim" in cfg.method:
        _check_shares(cfg)
    if hasattr(method, "check"):
        method.check(**parts)
    if hasattr(method, "validation_metrics"):
        _check_metrics(cfg, method.validation_metrics)


def _check_shares(cfg: DictConfig) -> None:
    """Check that the devices can share the questions of a step; skipped if their number is not known."""
    devices, prompts = cfg.trainer.devices, cfg.model.recipe.prompts_per_step
    count = len(devices) if OmegaConf.is_list(devices) else devices
    if not isinstance(count, int) or count < 1:
        return
    world = count * cfg.trainer.num_nodes
    if prompts % world:
        raise ValueError(
            f"model.recipe.prompts_per_step is {prompts}, which {world} devices cannot share evenly: make it "
            f"a multiple, such as {world * math.ceil(prompts / world)}"
        )
    micro_batch, minibatches = cfg.method.get("micro_batch", 1), cfg.method.get("num_minibatches", 1)
    if minibatches > (batches := math.ceil(prompts // world / micro_batch)):
        raise ValueError(
            f"method.num_minibatches is {minibatches}, and a step has {batches} micro-batches "
            f"({prompts} questions / {world} devices / micro_batch {micro_batch}): lower it, or "
            "model.recipe.micro_batch"
        )


def _check_metrics(cfg: DictConfig, known: tuple[str, ...]) -> None:
    """Check the metrics that are compared against those that a method's validation logs."""
    compared = {"optimized_metric": cfg.optimized_metric}
    for name, node in (cfg.get("callbacks") or {}).items():
        if node and node.get("monitor"):
            compared[f"callbacks.{name}.monitor"] = node.monitor
    for key, metric in compared.items():
        if metric not in known and not (key.startswith("callbacks") and metric.startswith("train/")):
            raise ValueError(f"{key} is {metric!r}: take one of {', '.join(known)}")
