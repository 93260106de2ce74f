"""Count decoding steps of several shapes, and estimate their times on GPUs from the counts.

python experiments/decode_step/count.py            # prints the tables
python experiments/decode_step/count.py --write    # also into README.md and counts.json
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path

from counter import Step, count_step

HERE = Path(__file__).parent
STEPS = {
    "2B, 4 x 4": Step(4, 4),
    "2B, 8 x 8": Step(8, 8),
    "2B, 8 x 8, P = 768": Step(8, 8, prompt=768),
    "2B, 8 x 16": Step(8, 16),
    "2B with LoRA, 8 x 8": Step(8, 8, adapter=True),
    "7B, 8 x 8": Step(8, 8, model="Qwen/Qwen2-VL-7B-Instruct"),
    "2.5-VL-3B, 8 x 8": Step(8, 8, model="Qwen/Qwen2.5-VL-3B-Instruct"),
}
CARDS = {"H100 SXM": 3.35, "H200": 4.8, "A100 80GB SXM": 2.04, "L40S": 0.864, "RTX 4090": 1.008}  # TB/s
# Assumptions, not measurements.
SHARE = 0.78  # of the bandwidth that kernels reach
GRAPH, EAGER = 1.3e-6, 9e-6  # seconds per kernel, in a CUDA graph and launched one by one


def milliseconds(count: dict[str, int], bandwidth: float, launch: float) -> float:
    """Estimated time of a step: its bytes, one after the other, and its launches."""
    return 1e3 * (count["bytes"] / (SHARE * bandwidth * 1e12) + count["launches"] * launch)


def tables(steps: dict[str, dict[str, dict[str, int]]]) -> str:
    """Counts of all steps, and estimates of the 8 x 8 step on all cards, in Markdown."""
    lines = [
        "| step | launches | operands, GB | copies of keys or values | host reads | limit, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in steps.items():
        old, new = counts["before"], counts["after"]
        cells = [f"{old['launches']:,} → **{new['launches']:,}**"]
        cells += [f"{old['bytes'] / 1e9:.2f} → **{new['bytes'] / 1e9:.2f}**"]
        cells += [f"{old[key]} → **{new[key]}**" for key in ("key_copies", "host_reads")]
        lines.append(" | ".join([f"| {name}", *cells, f"{new['least'] / 1e9:.2f} |"]))
    lines += ["", "| ms, estimated | limit | in a CUDA graph | without one |", "|---|---|---|---|"]
    for name in ("2B, 8 x 8", "7B, 8 x 8"):
        old, new = steps[name]["before"], steps[name]["after"]
        for card, bandwidth in CARDS.items():
            times = [
                f"{milliseconds(old, bandwidth, launch):.1f} → **{milliseconds(new, bandwidth, launch):.1f}**"
                for launch in (GRAPH, EAGER)
            ]
            limit = f"{new['least'] / bandwidth / 1e9:.1f}"
            lines.append(" | ".join([f"| {name}, {card}", limit, *times]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write README.md and counts.json")
    write = parser.parse_args().write
    path, readme = HERE / "counts.json", HERE / "README.md"
    stored = json.loads(path.read_text())
    for name, step in STEPS.items():
        stored["steps"][name]["after"] = dataclasses.asdict(count_step(step)[0])
    text = tables(stored["steps"])
    print(text)
    if write:
        path.write_text(json.dumps(stored, indent=1) + "\n")
        marked = re.sub(
            r"(?s)(<!-- tables -->\n).*(\n<!-- end -->)", lambda m: m[1] + text + m[2], readme.read_text()
        )
        readme.write_text(marked)


if __name__ == "__main__":
    main()
