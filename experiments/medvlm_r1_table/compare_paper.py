"""Compare the paper's accuracies with those of a comparison, as Markdown.

    python experiments/medvlm_r1_table/compare_paper.py experiments/medvlm_r1_table/comparison.json

Takes the comparison.json of `medvlm-r1 compare`; `paper.json` gives the source of each published
figure.
"""

import argparse
import json
from pathlib import Path

COLUMNS = {"mri": "MRI (in domain)", "ct": "CT", "xray": "X-ray", "mean": "mean"}
METHODS = {"zero_shot": "zero-shot", "sft": "SFT", "grpo": "GRPO"}


def table(paper: dict, ours: dict) -> list[str]:
    """Return two lines per method; the published one has no intervals, as the paper gives none."""
    labels = {row["method"]: row["label"] for row in ours["rows"]}
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, name in METHODS.items():
        published = dict(zip(paper["tests"], paper["rows"][method], strict=True))
        lines.append(f"| {name}, paper | " + " | ".join(f"{published[c]:.2f}" for c in COLUMNS) + " |")
        if method in labels:
            measured = ours["accuracy"][labels[method]]
            cells = [
                f"{100 * m['value']:.1f} ({100 * m['low']:.1f} to {100 * m['high']:.1f})"
                for m in (measured[c] for c in COLUMNS)
            ]
            lines.append(f"| {name}, ours | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="comparison.json")
    args = parser.parse_args()
    paper = json.loads(Path(__file__).with_name("paper.json").read_text())
    print("\n".join(table(paper, json.loads(args.comparison.read_text()))))
    print("\n" + "; ".join(f"{figure}: {source}" for figure, source in paper["provenance"].items()))


if __name__ == "__main__":
    main()
