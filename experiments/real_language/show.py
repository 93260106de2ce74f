"""Print as Markdown what a table of accuracies does not show: curves, lengths, contradictions, texts."""

import argparse
import json
from pathlib import Path

import pandas as pd

from medvlm_r1.data.sample import LETTERS

CURVES = {
    "reward": "train/reward",
    "accuracy": "train/accuracy",
    "well-formed": "train/well_formed",
    "tokens": "train/tokens",
    "entropy (nats)": "train/entropy",
    "KL (nats)": "train/kl",
    "zero-advantage groups": "train/frac_zero_advantage",
}
PARTS = 5  # of the training steps, whose means are shown
TEXTS = 10  # completions per method: the first of the test set


def curves(run: Path) -> str:
    """Means of GRPO's metrics over fifths of the steps."""
    rows = pd.read_csv(run / "metrics.csv")
    rows = rows[rows[CURVES["reward"]].notna()]
    lines = [f"| steps | {' | '.join(CURVES)} |", "|---" * (len(CURVES) + 1) + "|"]
    for k in range(PARTS):
        part = rows.iloc[len(rows) * k // PARTS : len(rows) * (k + 1) // PARTS]
        means = (f"{part[column].mean():.3g}" if column in part else "" for column in CURVES.values())
        lines.append(
            f"| {len(rows) * k // PARTS + 1} to {len(rows) * (k + 1) // PARTS} | {' | '.join(means)} |"
        )
    return "\n".join(lines)


def answers(runs: list[Path]) -> str:
    """Length, format and contradictions of the greedy answers, by method and test set."""
    lines = ["| method | test | tokens | cut at the limit | well-formed | reasoning names another option |"]
    lines.append("|---" * 6 + "|")
    for run in runs:
        rows = predictions(run)
        controls = json.loads((run / "metrics.json").read_text())["controls"]
        for name, part in rows.groupby("test_set", sort=False):
            other = controls[name]["reasoning_contradicts"]
            contradicts = f"{100 * other['value']:.1f} % of {other['n']}" if other else "no such answer"
            shares = (f"{100 * part[column].mean():.1f} %" for column in ("truncated", "well_formed"))
            row = (method(run), name, f"{part.tokens.mean():.1f}", *shares, contradicts)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def texts(run: Path, test: str) -> str:
    """The first completions of a test set, as they are."""
    rows = predictions(run)
    rows = rows[rows.test_set == test].iloc[:TEXTS]
    shown = []
    for row in rows.itertuples():
        options = ", ".join(f"{letter}) {text}" for letter, text in zip(LETTERS, row.options, strict=False))
        shown.append(f"{row.question} {options} [{row.gold}]\n{row.text}\n")
    return f"### {method(run)}\n\n```text\n" + "\n".join(shown) + "```\n"


def predictions(run: Path) -> pd.DataFrame:
    """Answers to the unchanged questions, in the order of their file."""
    rows = pd.read_json(run / "predictions.jsonl", lines=True)
    rows = rows[rows.control == "image"]
    number = rows.sample_id.str.extract(r"(\d+)$")[0].astype(int)
    return rows.iloc[number.argsort(kind="stable")]


def method(run: Path) -> str:
    return run.name.partition("-")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of the runs")
    parser.add_argument("--test", default="mri", help="test set of the completions")
    args = parser.parse_args()
    order = {"zero_shot": 0, "sft_600": 1, "grpo_600": 2}
    runs = sorted(
        (path.parent for path in args.sweep.glob("*/metrics.json")), key=lambda run: order.get(method(run), 9)
    )
    if not runs:
        parser.error(f"no finished run in {args.sweep}: start experiments/real_language/run.sh")
    for run in runs:
        if method(run).startswith("grpo"):
            print(f"## Training of {run.name}\n\n{curves(run)}\n")
    print(f"## Answers\n\n{answers(runs)}\n\n## The first {TEXTS} answers of {args.test}\n")
    for run in runs:
        print(texts(run, args.test))


if __name__ == "__main__":
    main()
