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

from medvlm_r1.plan.cards import CARDS, Card
from medvlm_r1.plan.times import BANDWIDTH_SHARE, GRAPH_SECONDS, LAUNCH_SECONDS

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
ON = ("h100_80gb", "h200_141gb", "a100_80gb", "l40s_48gb", "rtx_4090_24gb")


def milliseconds(count: dict[str, int], card: Card) -> tuple[float, float]:
    """Time of a step by the assumptions of the plan, in a CUDA graph and without one."""
    work = count["bytes"] / (BANDWIDTH_SHARE * card.bandwidth)
    graph = work + count["launches"] * GRAPH_SECONDS
    return 1e3 * graph, 1e3 * max(graph, count["launches"] * LAUNCH_SECONDS)


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
        for card in (CARDS[key] for key in ON):
            pairs = zip(milliseconds(old, card), milliseconds(new, card), strict=True)
            times = [f"{before:.1f} → **{after:.1f}**" for before, after in pairs]
            limit = f"{1e3 * new['least'] / card.bandwidth:.1f}"
            lines.append(" | ".join([f"| {name}, {card.name}", limit, *times]) + " |")
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
        before, after = re.split("(?s)(?<=<!-- tables -->\n).*(?=<!-- end -->)", readme.read_text())
        readme.write_text(f"{before}{text}\n{after}")


if __name__ == "__main__":
    main()
