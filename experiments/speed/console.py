"""Print the results as tables."""

from typing import Any

from phases import PHASES
from rich.console import Console
from rich.table import Table


def show(results: dict[str, Any]) -> None:
    size, rows = results["size"], results["rows"]
    console = Console(width=150)
    console.print(
        f"{size['prompts']} prompts x {size['group']} completions, {size['prompt_tokens']} prompt tokens "
        f"({size['image_tokens']} of them image tokens), up to {size['new_tokens']} new ({size['lengths']}), "
        f"{size['parameters'] / 1e6:.0f} M parameters, {size['tune']}, {size['dtype']}, {results['machine']}"
    )
    console.print("largest differences to ours:", results["parity"]["differences"])
    times = Table("seconds, median (minimum to maximum)", *("step", *PHASES))
    for name, row in rows.items():
        cells = [row["seconds"].get(phase) for phase in ("step", *PHASES)]
        times.add_row(
            name, *(f"{c['median']:.3g} ({c['least']:.3g} to {c['most']:.3g})" if c else "" for c in cells)
        )
    console.print(times)
    if all("memory" in row for row in rows.values()):
        console.print(_counted(rows))
    for name, found in results.get("ratios", {}).items():
        console.print(f"{name} against ours (times: TRL / ours; memory: ours / TRL):", _rounded(found))
    if "ratio" in results:
        console.print("against the best of TRL's rows, quantity by quantity:", _rounded(results["ratio"]))


def _counted(rows: dict[str, Any]) -> Table:
    parts = ("step", "sample", "reference", "train")
    table = Table(
        "of one step",
        *(f"TFLOP {part}" for part in parts),
        "peak GB",
        "above resident",
        "images through the tower",
        "preprocessed",
        "tokens through LM",
        "row-steps",
        "device syncs",
    )
    for name, row in rows.items():
        flops, memory, counts = row["flops"], row["memory"], row["counters"]
        table.add_row(
            name,
            *(f"{flops.get(part, 0) / 1e12:.3g}" for part in parts),
            f"{memory['total'] / 1e9:.3g}",
            f"{memory['above_resident'] / 1e9:.3g}",
            *(str(counts["images"]["step"]), str(counts["preprocessed"]), str(counts["tokens"]["step"])),
            *(str(counts["row_steps"]["step"]), str(counts["device_syncs"]["step"])),
        )
    return table


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
