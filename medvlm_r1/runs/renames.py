"""Names of earlier versions: old keys work on the command line, and old run folders stay readable."""

import re
from collections.abc import Sequence
from typing import Any

# Configuration keys and groups by dotted path; an entry covers all keys below it.
KEYS: dict[str, str] = {
    "method.inner_epochs": "method.num_iterations",
    "method.minibatches": "method.num_minibatches",
    "method.clip_low": "method.loss.clip_low",
    "method.clip_high": "method.loss.clip_high",
    "method.ratio": "method.loss.importance_sampling_level",
    "method.surrogate": "method.loss.policy_loss",
    "method.aggregate": "method.loss.loss_type",
    "method.importance_cap": "method.loss.tis_cap",
    "method.kl_in": "method.kl_placement",
    "method.whiten": "method.normalize_advantages",
    "method.redraws": "method.dynamic_sampling_rounds",
    "method.overlong": "method.overlong_buffer",
    "method.advantages.of": "method.advantages.base",
    "method.optim.clip_norm": "method.optim.max_grad_norm",
    "method.optim.lr_factor": "method.optim.lr_scale",
    "peft.lr_factor": "peft.lr_scale",
    "model.replies": "model.cache",
    "pictures": "image_cache",
    "rollout.look_every": "rollout.sync_every",
    "tune": "peft",
    "watch": "callbacks",
    "callbacks.alarms.flat_steps": "callbacks.alarms.zero_advantage_steps",
    "callbacks.alarms.truncated_share": "callbacks.alarms.truncated_fraction",
    "callbacks.alarms.sampler_gap": "callbacks.alarms.sampling_logp_difference",
    "callbacks.rollouts.pictures": "callbacks.rollouts.images_per_step",
    "callbacks.rollouts.pictures_every": "callbacks.rollouts.images_every",
    "callbacks.pictures": "callbacks.images",
    "callbacks.images.pictures": "callbacks.images.per_test_set",
    **{f"data.{k}": f"data.rows.{k}" for k in ("on_bad_row", "check_images", "follow_links", "volumes")},
}
# Keys that earlier versions lacked -> the value that does what they did, or the key that had it.
ADDED: dict[str, Any] = {
    "data.questions": "all",
    "data.rows.on_bad_image": "data.rows.on_bad_row",
    "data.rows.volumes.frame": 0,
    "data.columns.rationale": None,
    "difficulty._target_": "medvlm_r1.data.difficulty.TrainingBand",
    "difficulty.subset": "band",
}
# Options of a group.
OPTIONS: dict[str, dict[str, str]] = {
    "logger": {"csv_tensorboard": "tensorboard"},
    "trainer": {"deepspeed_zero2": "fsdp"},
}
# Columns of metrics.csv.
METRICS: dict[str, str] = {
    "train/host_reads": "train/device_syncs",
    "train/pass_tokens": "train/forward_tokens",
    "train/head_tokens": "train/lm_head_tokens",
    "train/gap_mean": "train/sampling_logp_difference_mean",
    "train/gap_p99": "train/sampling_logp_difference_p99",
    "train/groups_with_spread": "train/frac_zero_advantage",
    "train/active_groups": "train/frac_zero_advantage",
    "train/redrawn": "train/replaced_groups",
    "train/clipped": "train/clip_fraction",
    "train/ratio": "train/importance_ratio",
    "timing/seconds_redraw": "timing/seconds_dynamic_sampling",
}
COMPLEMENTS = ("train/groups_with_spread", "train/active_groups")  # of these, the new column is 1 - the old

_OVERRIDE = re.compile(r"([+~]*)([\w./]+)(@[^=]*)?(=.*)?", re.DOTALL)  # sign, key, package, value


def renamed(key: str) -> str:
    """Present name of a dotted key, or of a group with slashes."""
    dotted = key.replace("/", ".")
    for old in sorted(KEYS, key=len, reverse=True):
        if dotted == old or dotted.startswith(f"{old}."):
            new = renamed(KEYS[old] + dotted.removeprefix(old))
            return new.replace(".", "/") if "/" in key else new
    return key


def renamed_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rewrite old keys, also in ``${...}``, and options; returns the arguments, and a line for each name."""
    rewritten, notices = [], {}

    def rename(key: str) -> str:
        if (new := renamed(key)) != key:
            notices[key] = f"`{key}` is now `{new}`"
        return new

    for argument in arguments:
        if match := _OVERRIDE.fullmatch(argument):  # not of an option such as -m
            sign, key, package, value = match.groups(default="")
            package = re.sub(r"[\w.]+", lambda name: rename(name[0]), package)
            value = re.sub(r"(?<=\$\{)[\w.]+", lambda name: rename(name[0]), value)
            for old, new in OPTIONS.get(renamed(key), {}).items():
                value, found = re.subn(rf"\b{old}\b", new, value)
                if found:
                    notices[f"{key}={old}"] = f"`{key}={old}` is now `{key}={new}`"
            argument = f"{sign}{rename(key)}{package}{value}"
        rewritten.append(argument)
    return rewritten, list(notices.values())


def renamed_config(config: dict[str, Any]) -> dict[str, Any]:
    """Rewrite old keys in a nested configuration, such as a run's ``config.yaml``."""
    result: dict[str, Any] = {}

    def insert(node: dict[Any, Any], path: tuple[Any, ...]) -> None:
        for name, value in node.items():
            here = (*path, name)  # a logger's own settings may have numbers as keys
            if isinstance(value, dict) and value:
                insert(value, here)
                continue
            dotted = ".".join(map(str, here))
            *parents, last = here if renamed(dotted) == dotted else renamed(dotted).split(".")
            target = result
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value

    insert(config, ())
    return result
