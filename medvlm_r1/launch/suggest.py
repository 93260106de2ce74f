"""Suggest what a misspelt key or option may mean."""

import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from medvlm_r1.launch.reference import read_reference
from medvlm_r1.runs.places import CONF
from medvlm_r1.runs.renames import OPTIONS, renamed
from medvlm_r1.runs.shorten import clip, shorten

_LONGEST = 80  # characters of a name that are compared with others

# Names that TRL, verl, PEFT, Lightning and the Lightning-Hydra template have for keys here.
SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate"), ("method.optim.lr",)),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), ("method.optim.schedule",)),
    **dict.fromkeys(("warmup", "warmup_ratio", "num_warmup_steps"), ("method.optim.warmup_steps",)),
    **dict.fromkeys(("gradient_clip_val", "clip_grad", "grad_clip"), ("method.optim.max_grad_norm",)),
    "max_grad_norm": ("method.optim.max_grad_norm",),
    "weight_decay": ("optimizer.weight_decay",),
    **dict.fromkeys(("batch_size", "train_batch_size"), ("model.recipe.prompts_per_step",)),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "per_device_train_batch_size"),
        ("model.recipe.micro_batch", "model.recipe.prompts_per_step"),
    ),
    **dict.fromkeys(("eval_batch_size", "per_device_eval_batch_size"), ("model.recipe.evaluation_batch",)),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs"), ("model.recipe.epochs",)),
    **dict.fromkeys(("steps", "max_steps"), ("trainer.max_steps",)),
    **dict.fromkeys(("gpus", "n_gpus", "num_gpus", "devices"), ("trainer.devices",)),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "dtype", "precision"), ("model.recipe.dtype",)),
    **dict.fromkeys(("eval_steps", "eval_interval"), ("trainer.val_check_interval",)),
    **dict.fromkeys(("save_steps", "every_n_train_steps"), ("callbacks.last.every",)),
    **dict.fromkeys(("num_generations", "n_samples", "group_size", "g"), ("method.sampling.group_size",)),
    **dict.fromkeys(
        ("epsilon", "cliprange", "clip_ratio", "clip_eps"), ("method.loss.clip_low", "method.loss.clip_high")
    ),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), ("method.loss.clip_high",)),
    **dict.fromkeys(("kl_coef", "kl_loss_coef", "kl_coeff", "beta"), ("method.beta",)),
    **dict.fromkeys(("mu", "ppo_epochs", "num_iterations"), ("method.num_iterations",)),
    **dict.fromkeys(("scale_rewards", "adv_estimator"), ("method.advantages",)),
    "mask_truncated_completions": ("method.overlong_buffer",),
    "temperature": ("method.sampling.temperature",),
    "top_p": ("method.sampling.top_p",),
    "top_k": ("method.sampling.top_k",),
    **dict.fromkeys(
        ("max_completion_length", "max_new_tokens", "max_tokens"), ("model.recipe.max_completion_tokens",)
    ),
    "max_prompt_length": ("model.recipe.max_prompt_tokens",),
    **dict.fromkeys(("reward_funcs", "reward_functions"), ("reward.terms",)),
    "reward_weights": ("reward.weights",),
    **dict.fromkeys(("lora_r", "lora_rank", "r"), ("peft.adapter.r",)),
    "lora_alpha": ("peft.adapter.lora_alpha",),
    **dict.fromkeys(("model_name_or_path", "model_name", "pretrained"), ("model.path",)),
    **dict.fromkeys(("output_dir", "log_dir", "save_dir"), ("paths.outputs",)),
    **dict.fromkeys(("report_to", "wandb"), ("logger",)),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), ("workers",)),
    **dict.fromkeys(("resume_from_checkpoint", "checkpoint"), ("ckpt_path", "resume")),
}


def suggest(error: Exception, known: DictConfig, folders: Sequence[Path]) -> str:
    """Hydra's message, with the nearest among the keys of ``known`` or the options in ``folders``."""
    message = str(error)
    if key := re.search(r"Could not override '([^']+)'", message):
        if (new := renamed(key[1])) != key[1]:
            return f"`{key[1]}` is now `{new}`: rename it in the file that sets it"
        if any((folder / key[1]).is_dir() for folder in folders):
            added = re.search(r"use (\+\S+)", message)
            return f"{key[1]} has no default to override: add {added[1] if added else f'+{key[1]}=...'}"
        new = re.match(r"Key '([^']+)' is not in struct", str(error.__cause__))
        if new and OmegaConf.is_dict(OmegaConf.select(known, key[1], throw_on_missing=False)):
            written = shlex.quote("+" + message.partition("use ")[2].partition("\n")[0])
            return f"{key[1]} has no {new[1]!r} to override: write {written} to add it"
        near = nearest(key[1], keys_of(OmegaConf.to_container(known)))
        if not near and (options := options_with(key[1])):
            return f"there is no key {shorten(key[1])} in the configuration: {options}"
        hint = f"did you mean {' or '.join(near)}?" if near else "python run.py --cfg job prints every key"
        return f"there is no key {shorten(key[1])} in the configuration: {hint}"
    if option := re.search(r"Could not find '([^']+)'", message):
        group, _, name = option[1].rpartition("/")
        if new := OPTIONS.get(group, {}).get(name):
            return f"`{group}={name}` is now `{group}={new}`: rename it in the file that sets it"
        options = sorted({p.stem for folder in folders for p in (folder / group).glob("*.yaml")})
        near = get_close_matches(name[:_LONGEST], options, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        hint = f"{group}=null leaves it out. " if name in ("none", "off", "false") else hint
        return f"{group} has no option {shorten(name)}: {hint}The options are {', '.join(options)}"
    if override := re.match(r"Ambiguous value for argument '(.*?)'\n", message, re.DOTALL):
        key, _, value = override[1].partition("=")
        text, several = shlex.quote(f"{key}={_quoted(value)}"), shlex.quote(f"{key}=[{value}]")
        return f"{key} has a comma: write {text} for one text, {several} for a list, or add -m for a job each"
    if name := re.match(r"Interpolation key '([^']+)' not found", message):
        return (
            f"${{{name[1]}}} takes the value of a key, and there is none of that name: a variable of the "
            f"environment is ${{oc.env:{name[1]}}}"
        )
    return message


def suggest_quotes(override: str, message: str) -> str:
    """Show how to quote a value that Hydra's grammar refuses; ``message`` is Hydra's."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@-]+", key, re.ASCII):
        return f"{shorten(override)} is no override, which has the form key=value"
    if value.startswith(("{", "[")):
        remedy = "put each name with signs other than letters, digits and _ . / - in double quotes"
        example = """'data.test={ct:"my file, 2.csv"}'"""
        written = f"write {own}, or " if (own := _quoted_container(key, value)) else ""
        reason = clip(message.splitlines()[0])
        return f"Hydra cannot read {clip(override)} ({reason}): {written}{remedy}, as in {example}"
    return f"Hydra reads the value of {key} only in quotes: write {shlex.quote(f'{key}={_quoted(value)}')}"


def _quoted(value: str) -> str:
    """A text in Hydra's double quotes; ``~`` at its start is the home folder, as in a shell."""
    text = re.sub(r'(\\*)"', r'\1\1\\"', os.path.expanduser(value))  # backslashes before a quote count double
    return f'"{text}{text[len(text.rstrip(chr(92))) :]}"'


def _quoted_container(key: str, value: str) -> str | None:
    """A list of texts or a dictionary of names to texts, in quotes for the shell; ``None`` for others."""
    opened, body, closed = value[:1], value[1:-1], value[-1:]
    if opened == "{" and closed == "}":
        items = [item.partition(":")[::2] for item in re.split(r",(?=\s*[\w-]+\s*:)", body)]
        inner = ",".join(f"{name.strip()}:{_quoted(text.strip())}" for name, text in items)
    elif opened == "[" and closed == "]":
        inner = ",".join(_quoted(text.strip()) for text in body.split(","))
    else:
        return None
    written = f"{key}={opened}{inner}{closed}"
    try:
        OverridesParser.create().parse_override(written)
    except HydraException:
        return None
    return shlex.quote(written)


def nearest(key: str, known: list[str]) -> list[str]:
    """Up to three near keys: by another library's name, else by the last word, first in the same group."""
    key = key[-_LONGEST:]
    group, _, word = key.rpartition(".")
    if other := [
        k for k in SYNONYMS.get(word.lower(), ()) if any(n == k or n.startswith(f"{k}.") for n in known)
    ]:
        return other
    if word.lower() in SYNONYMS:
        return []  # a key of other options
    siblings = [name for name in known if name.startswith(group.split(".")[0] + ".")]
    words = get_close_matches(word, {name.rpartition(".")[2] for name in siblings}, n=1, cutoff=0.7)
    close = [name for name in siblings if name.rpartition(".")[2] in words]
    return list(dict.fromkeys(close + get_close_matches(key, known, n=3, cutoff=0.6)))[:3]


def options_with(key: str) -> str | None:
    """Name the options whose key another library calls ``key``; ``None`` if there are none."""
    groups = read_reference(CONF).groups.values()
    for meant in SYNONYMS.get(key.rpartition(".")[2].lower(), ()):
        named = [
            f"{option.group}={option.name}"
            for group in groups
            for option in group.options.values()
            if any(f"{one.path}.".startswith(f"{meant}.") for one in option.keys)
        ]
        if named:
            return f"{meant} is a key of {', '.join(named[:4])}"
    return None


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all leaves."""
    if not (isinstance(node, dict) and node):
        return [prefix]
    return [key for name in node for key in keys_of(node[name], f"{prefix}.{name}".lstrip("."))]
