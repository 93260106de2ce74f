"""Suggest what a misspelt key or option may mean."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medvlm_r1.runs.renames import renamed


def suggest(error: Exception, known: DictConfig, conf: Path) -> str:
    """Hydra's message, with the nearest spelling among the keys of ``known`` or the options in ``conf``."""
    message = str(error)
    if key := re.search(r"Could not override '([^']+)'", message):
        if (new := renamed(key[1])) != key[1]:
            return f"`{key[1]}` is now `{new}`: rename it in the file that sets it"
        if (conf / key[1]).is_dir():
            added = re.search(r"use (\+\S+)", message)
            return f"{key[1]} has no default to override: add {added[1] if added else f'+{key[1]}=...'}"
        near = nearest(key[1], keys_of(OmegaConf.to_container(known)))
        hint = f"did you mean {' or '.join(near)}?" if near else "python run.py --cfg job prints every key"
        return f"there is no key {key[1]!r} in the configuration: {hint}"
    if option := re.search(r"Could not find '([^']+)'", message):
        group, _, name = option[1].rpartition("/")
        options = sorted(p.stem for p in (conf / group).glob("*.yaml"))
        near = get_close_matches(name, options, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{group} has no option {name!r}: {hint}The options are {', '.join(options)}"
    return message


def nearest(key: str, known: list[str]) -> list[str]:
    """Up to three near keys: first those of the same group whose last word is near."""
    group, _, word = key.rpartition(".")
    siblings = [name for name in known if name.startswith(group.split(".")[0] + ".")]
    words = get_close_matches(word, {name.rpartition(".")[2] for name in siblings}, n=1, cutoff=0.7)
    close = [name for name in siblings if name.rpartition(".")[2] in words]
    return list(dict.fromkeys(close + get_close_matches(key, known, n=3, cutoff=0.6)))[:3]


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all leaves."""
    if not (isinstance(node, dict) and node):
        return [prefix]
    return [key for name in node for key in keys_of(node[name], f"{prefix}.{name}".lstrip("."))]
