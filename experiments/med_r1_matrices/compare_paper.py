"""Compare the effect of thinking in the paper with that in a matrix, as Markdown.

    python experiments/med_r1_matrices/compare_paper.py experiments/med_r1_matrices/task/matrix.json

Takes the matrix.json of `medvlm-r1 matrix` over several prompts; `paper.json` gives the source of
the published figures. Means are over cells, the diagonal (in domain) separate from the rest.
"""

import argparse
import json
from pathlib import Path

import numpy as np


def published(figures: dict) -> tuple[float, float]:
    """Return the means over the diagonal and over the rest, in points."""
    tests, lines = figures["tests"], figures["lines"]
    inside = np.array([[domain == test for test in tests] for domain in lines])
    values = np.array(list(lines.values()))
    return float(values[inside].mean()), float(values[~inside].mean())


def measured(results: dict) -> list[str]:
    """Return a line per matrix: both means, and the difference from the first matrix out of domain."""
    differences = {c["label"]: c["interval"] for c in results["changes"] if c["domain"] is None}
    lines = ["| ours | in domain | out of domain | out of domain, minus the first |", "|---|---|---|---|"]
    for matrix in results["matrices"]:
        means = [_percent(matrix["mean"][name]) for name in ("in_domain", "out_of_domain")]
        change = _percent(differences[matrix["label"]], "+") if matrix["label"] in differences else ""
        lines.append(f"| {matrix['label']} | {' | '.join(means)} | {change} |")
    return lines


def _percent(interval: dict, sign: str = "") -> str:
    value, low, high = (f"{100 * interval[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("matrix", type=Path, help="matrix.json")
    args = parser.parse_args()
    paper = json.loads(Path(__file__).with_name("paper.json").read_text())["no_think_minus_think"]
    inside, outside = published(paper)
    title = f"No-think minus think, the paper's 8 x 8 ({paper['provenance']})"
    print(f"{title}: mean {inside:+.1f} in domain, {outside:+.1f} out of domain.\n")
    print("\n".join(measured(json.loads(args.matrix.read_text()))))


if __name__ == "__main__":
    main()
