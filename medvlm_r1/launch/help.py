"""The text of ``python run.py --help``: commands, keys that are often changed, all groups and options."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from medvlm_r1.launch.reference import Group, read_reference

COMMANDS = {
    "": "tiny model, phantom images, on any machine",
    "+experiment=grpo_600": "MedVLM-R1's run on Qwen2-VL-2B",
    "+experiment=grpo_600 model=tiny data=phantom": "the same in miniature, on a CPU",
    "+experiment=grpo_600 debug=fast": "one step and one batch of everything",
    "+experiment=grpo_600 plan=true card=a100_80gb": "does it fit, and how long would it take?",
    "-m +experiment=sft_600,grpo_600 seed=0,1 sweep=NAME": "a sweep: every combination is a run",
}
# Keys that most users change.
KEYS = (
    "method.optim.lr",
    "model.recipe.prompts_per_step",
    "model.recipe.epochs",
    "method.sampling.group_size",
    "method.beta",
    "model.recipe.max_completion_tokens",
    "trainer.max_steps",
    "trainer.devices",
    "seed",
    "resume",
)


def help_text(folders: Sequence[Path], width: int | None = None) -> str:
    """Return the help for the options in ``folders``, the package's last."""
    *own, conf = folders
    reference = read_reference(conf, *own)
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    comments = {
        key.path: reference.comment_of(key)
        for option in (
            reference.top,
            *(o for group in reference.groups.values() for o in group.options.values()),
        )
        for key in reversed(option.keys)
    }
    parts = [
        "Train and evaluate a reasoning vision-language model on medical questions.",
        "usage: python run.py [-m] [GROUP=OPTION ...] [KEY=VALUE ...]   (installed: medvlm-r1 run)",
        _table({f"python run.py {arguments}".rstrip(): text for arguments, text in COMMANDS.items()}, width),
        "Keys that are often changed:",
        _table({key: first_sentence(comments[key]) for key in KEYS}, width),
        "Groups and their options; * is the default, GROUP=null leaves a group out:",
        *(_group(group, width) for group in reference.groups.values()),
        _table(
            {
                "--cfg job": "print every key with its value instead of running",
                "--config-dir DIR": "add options of your own from a folder like conf/",
                "-m": "run every combination of values with commas",
                "--hydra-help, --version": "Hydra's own options; the version",
            },
            width,
        ),
        "Every key of every option: docs/configuration.md. Quote values with signs: 'KEY=\"a=b\"'.",
    ]
    return "\n\n".join(parts)


def _group(group: Group, width: int) -> str:
    rows = {f"{'*' if name == group.default else ' '} {name}": o.summary for name, o in group.options.items()}
    return f"{group.name}=\n{_table(rows, width)}"


def _table(rows: dict[str, str], width: int) -> str:
    """Two columns, the second wrapped."""
    first = min(max(map(len, rows)), width // 2) + 4
    lines = []
    for name, text in rows.items():
        wrapped = textwrap.wrap(text, max(width - first, 20)) or [""]
        head = f"  {name}".ljust(first)
        if len(head) > first:
            lines.append(head)
            head = " " * first
        lines += [head + wrapped[0], *(" " * first + line for line in wrapped[1:])]
    return "\n".join(line.rstrip() for line in lines)


def first_sentence(comment: str) -> str:
    """The comment up to its first full stop, or to the example that it announces."""
    text = re.split(r",? e\.g\.", " ".join(comment.split()))[0]
    return re.split(r"(?<!\bDr)\.\s+(?=[A-Z]|python)", text)[0].rstrip(".") + "."
