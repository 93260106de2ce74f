"""Writes run folders like those of a run, random from a seed, for the tests of the report.

``python tests/support/run_folders.py DIR`` writes a sweep there, to look at its page.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from PIL import Image

SETS = {"mri": "mri", "ct": "ct", "xray": "xray"}
QUESTIONS = [
    ("Which organ is marked by the bright border?", ["Liver", "Left kidney", "Spleen", "Stomach"]),
    ("What does the lesion in this image most likely represent?", ["Cyst", "Solid mass", "Haemorrhage"]),
    ("How was this image acquired?", ["T1-weighted", "T2-weighted", "FLAIR", "Diffusion-weighted"]),
    ("Is there a lesion?", ["Yes", "No"]),
]
RATES = {
    "zero_shot": {"mri": 0.41, "ct": 0.41, "xray": 0.41},
    "sft": {"mri": 0.63, "ct": 0.36, "xray": 0.39},
    "grpo": {"mri": 0.65, "ct": 0.65, "xray": 0.64},
}
STEPS = 75


def config(method: str, seed: int, folder: Path) -> dict:
    """The resolved configuration of one run."""
    source = {"_target_": "medvlm_r1.phantom.questions.PhantomSource", "n": 600, "split": "train"}
    recipe = {"grpo_lr": 1e-4, "sft_lr": 5e-4, "epochs": 2, "prompts_per_step": 16, "group_size": 8}
    recipe |= {"max_prompt_tokens": 512, "max_completion_tokens": 32, "max_pixels": 12544}
    optim = {"lr": recipe.get(f"{method}_lr"), "schedule": "linear", "max_grad_norm": 1.0}
    grpo = {"beta": 0.04, "sampling": {"group_size": 8, "temperature": 1.0}}
    own = {
        "zero_shot": {"_target_": "medvlm_r1.algorithms.base.VLMModule"},
        "sft": {"_target_": "medvlm_r1.algorithms.sft.SFT", "micro_batch": 8, "optim": optim},
        "grpo": {"_target_": "medvlm_r1.algorithms.grpo.GRPO", "micro_batch": 8, "optim": optim} | grpo,
    }[method]
    return {
        "experiment": f"{method}_600" if method != "zero_shot" else method,
        "run_folder": str(folder),
        "seed": seed,
        "sweep": folder.parent.name,
        "select": "last",
        "data": {
            "train": source | {"modality": "mri"},
            "test": {t: source | {"modality": t, "n": 300} for t in SETS},
        },
        "model": {"path": "embedded", "recipe": recipe},
        "prompt": {"name": "medvlm_r1", "layout": "lines"},
        "reward": {"weights": {"format": 1.0, "accuracy": 1.0}},
        "method": {"max_completion_tokens": 32} | own,
        "trainer": {"accelerator": "cpu", "devices": 1},
        "callbacks": {"checkpoint": {"dirpath": f"{folder}/checkpoints"}},
    }


def write_run(
    parent: Path, method: str, seed: int = 0, n: int = 60, *, name: str = "", changes: dict | None = None
) -> Path:
    """Write one finished run folder under ``parent``; every method and seed answers the same questions.

    Args:
        parent: sweep folder.
        method: ``zero_shot``, ``sft`` or ``grpo``.
        seed: seed of the run.
        n: questions per test set.
        name: name of the folder; experiment and seed by default.
        changes: dotted configuration keys with other values.
    """
    experiment = f"{method}_600" if method != "zero_shot" else method
    folder = parent / (name or f"{experiment}-seed{seed}")
    (folder / ".hydra").mkdir(parents=True)
    settings = OmegaConf.create(config(method, seed, folder))
    for key, value in (changes or {}).items():
        OmegaConf.update(settings, key, value)
    OmegaConf.save(settings, folder / "config.yaml")
    overrides = [f"+experiment={experiment}", "model=tiny", "data=phantom", f"seed={seed}"]
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")

    rows = predictions(method, seed, n, folder.name)
    table = pd.DataFrame(rows)
    _json_lines(folder / "predictions.jsonl", rows)
    (folder / "metrics.json").write_text(json.dumps(summary(method, experiment, seed, folder.name, table)))
    fit = {"zero_shot": 0.0, "sft": 21.0, "grpo": 64.3}[method] * (1 + seed / 50)
    timing = {"hardware": "2 CPU cores, 8 GiB", "seconds": {"setup": 4.2, "fit": fit, "test": 18.7}}
    (folder / "timing.json").write_text(json.dumps(timing))
    images(folder / "images", table)
    if method != "zero_shot":
        curves(method, seed).to_csv(folder / "metrics.csv", index=False)
    if method == "grpo":
        (folder / "rollouts").mkdir()
        for step in (1, 25, 50, STEPS):
            _json_lines(folder / "rollouts" / f"step-{step}.jsonl", rollouts(step, seed))
        message = "6 of 16 groups have equal rewards: no gradient"
        _json_lines(folder / "alarms.jsonl", [{"step": 31, "alarm": "zero_advantage", "message": message}])
    return folder


def predictions(method: str, seed: int, n: int, run: str) -> list[dict]:
    """Rows of ``predictions.jsonl``; a hard question is hard for every method."""
    rows = []
    for number, (test_set, modality) in enumerate(SETS.items()):
        shared = np.random.default_rng(number)
        own = np.random.default_rng([number, seed, sorted(RATES).index(method)])
        for i in range(n):
            question, options = QUESTIONS[shared.integers(len(QUESTIONS))]
            gold = "ABCD"[shared.integers(len(options))]
            ease = 0.6 * shared.random() + 0.4 * own.random()
            right = ease < _EASE[int(RATES[method][test_set] * len(_EASE))]
            letter = gold if right else next(c for c in "ABCD" if c != gold)
            untagged = method == "zero_shot" and own.random() < 0.15
            text = {
                "zero_shot": f"{letter}." if untagged else f"<answer>{letter}</answer>",
                "sft": f"<answer>{letter}</answer>",
                "grpo": "<think>The bright region lies on the right and is round, its edge is a < b; so "
                f"{options['ABCD'.index(letter)].lower()} fits best.</think>\n<answer>{letter}</answer>",
            }[method]
            for control in ("image", "blank"):
                hit = bool(right and not untagged) if control == "image" else bool(own.random() < 0.3)
                rows.append(
                    {
                        "run": run,
                        "step": STEPS,
                        "test_set": test_set,
                        "sample_id": f"{test_set}-{i:04d}",
                        "image_group": f"{test_set}-{i:04d}",
                        "modality": modality,
                        "question_type": "Lesion Grading",
                        "control": control,
                        "question": question,
                        "options": options,
                        "text": text,
                        "answer": None if untagged else letter,
                        "gold": gold,
                        "correct": hit,
                        "correct_lenient": bool(right) if control == "image" else hit,
                        "well_formed": method == "grpo",
                        "answered": not untagged,
                        "tokens": len(text) // 3,
                        "truncated": False,
                    }
                )
    return rows


_EASE = np.sort(np.random.default_rng(9).random((2000, 2)) @ [0.6, 0.4])


def summary(method: str, experiment: str, seed: int, name: str, table: pd.DataFrame) -> dict:
    """``metrics.json``."""
    plain = table[table["control"] == "image"]

    def rates(column: str) -> dict:
        by_set = plain.groupby("test_set", sort=False)[column]
        return {
            t: {"value": m, "low": m, "high": m, "n": len(plain) // 3, "method": "wilson"}
            for t, m in by_set.mean().items()
        }

    formed, answered = rates("well_formed"), rates("answered")
    return {
        "run": {
            "name": name,
            "experiment": experiment,
            "method": method,
            "seed": seed,
            "model": "tiny (1.7 M parameters)",
            "data": "phantom",
            "versions": {"torch": "2.13.0+cpu", "transformers": "5.17.1", "lightning": "2.6.6"},
            "commit": "1039250",
            "steps": 0 if method == "zero_shot" else STEPS,
        },
        "accuracy": rates("correct"),
        "accuracy_lenient": rates("correct_lenient"),
        "format": {t: {"well_formed": formed[t], "answered": answered[t]} for t in SETS},
        "tokens": {t: {"mean": float(plain["tokens"].mean()), "truncated": 0.0} for t in SETS},
        "controls": {},
        "audit": audit(),
        "counters": {"rows_read": 600, "rows_dropped": 0},
    }


def audit(copies: int = 0) -> dict:
    """The audit in ``metrics.json``, with this many MRI questions that show a training image."""
    pair = {"kind": "mirrored", "first": "train/7.png", "second": "test/3.png", "distance": 0.004}
    rules = ("option text", "option text as spelt", "question", "majority letter", "longest option")
    return {
        "verdict": f"{copies} of 60 mri questions show a copy of a training image",
        "leaks": [
            {
                "source": "train",
                "target": name,
                "n": 60,
                "questions": copies * (name == "mri"),
                "kinds": {"mirrored": copies} if copies and name == "mri" else {},
                "sources": copies * (name == "mri"),
                "pairs": [pair] * bool(copies and name == "mri"),
            }
            for name in SETS
        ],
        "shortcuts": {
            name: {rule: {"accuracy": 0.26, "chance": 0.27, "n": 60} for rule in rules} for name in SETS
        },
        "faults": [],
        "dropped": 0,
    }


def curves(method: str, seed: int) -> pd.DataFrame:
    """``metrics.csv``: sparse, validation every tenth step."""
    rng = np.random.default_rng([5, seed, len(method)])
    rows = []
    for step in range(1, STEPS + 1):
        done = 1 - np.exp(-step / 25)
        row = {
            "step": step,
            "epoch": step // 38,
            "train/lr": 1e-4,
            "train/loss": 0.9 * (1 - done) + 0.05 * rng.random(),
        }
        if method == "grpo":
            accuracy = 0.4 + 0.25 * done + 0.06 * rng.normal()
            formed = 0.4 + 0.58 * done + 0.03 * rng.normal()
            row |= {
                "train/reward": accuracy + formed,
                "train/reward_accuracy": accuracy,
                "train/reward_format": formed,
                "train/reward_format_right": formed + 0.01,
                "train/reward_format_wrong": formed - 0.01,
                "train/reward_std": 0.6 - 0.3 * done,
                "train/frac_zero_advantage": 0.05 + 0.4 * done,
                "train/entropy": 1.4 - 0.9 * done,
                "train/tokens_seen": 900 * step,
                "train/kl": 0.08 * done + 0.005 * rng.random(),
                "train/tokens": 9 + 26 * done + 1.5 * rng.normal(),
                "train/truncated": max(0.0, 0.03 * (1 - done) + 0.01 * rng.normal()),
            }
        rows.append(row)
        if step % 10 == 0:
            top = {"grpo": 0.25, "sft": 0.22}[method]
            rows.append({"step": step, "validation/accuracy": 0.41 + top * done + 0.02 * rng.normal()})
    return pd.DataFrame(rows)


def rollouts(step: int, seed: int, size: int = 8) -> list[dict]:
    """Rows of ``rollouts/step-N.jsonl``: two groups, with more reasoning at later steps."""
    rng = np.random.default_rng([7, step, seed])
    rows = []
    for prompt in range(2):
        question, options = QUESTIONS[prompt]
        group = []
        for completion in range(size):
            thinks = rng.random() < 0.25 + 0.7 * step / STEPS
            right = rng.random() < 0.35 + 0.35 * step / STEPS
            letter = "A" if right else "B"
            thought = f"A round bright region at the upper right, so {options['AB'.index(letter)]}."
            text = (f"<think>{thought}</think>\n" if thinks else "") + f"<answer>{letter}</answer>"
            rewards = {"format": float(thinks), "accuracy": float(right)}
            group.append(
                {"step": step, "sample_id": f"mri-{prompt:04d}", "image": "", "question": question}
                | {"options": options, "gold": "A", "completion": completion, "text": text, "answer": letter}
                | {"rewards": rewards, "total": sum(rewards.values())}
                | {"tokens": len(text) // 3, "truncated": False}
            )
        totals = np.array([row["total"] for row in group])
        advantages = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
        rows += [row | {"advantage": advantage} for row, advantage in zip(group, advantages, strict=True)]
    return rows


def images(folder: Path, table: pd.DataFrame) -> None:
    """Write an image for two of three of each test set's first twelve questions."""
    folder.mkdir()
    y, x = np.mgrid[-1:1:112j, -1:1:112j]
    for number, sample_id in enumerate(table["sample_id"].drop_duplicates()):
        if number % 3 < 2 and int(sample_id.rsplit("-")[1]) < 12:
            rng = np.random.default_rng(number)
            body = ((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1) * 0.45
            cx, cy = rng.uniform(-0.45, 0.45, 2)
            body = body + ((x - cx) ** 2 + (y - cy) ** 2 < 0.02) * 0.4 + 0.05 * rng.random(x.shape)
            Image.fromarray((255 * body.clip(0, 1)).astype("uint8")).save(folder / f"{sample_id}.png")


def _json_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sweep(parent: Path, seeds: int = 1, n: int = 60) -> Path:
    """Write zero-shot, SFT and GRPO runs under ``parent``, each with the same seeds; return ``parent``."""
    for method in RATES:
        for seed in range(seeds):
            write_run(parent, method, seed, n)
    return parent


if __name__ == "__main__":
    write_sweep(Path(sys.argv[1]), seeds=int(sys.argv[2]) if len(sys.argv) > 2 else 1, n=300)
