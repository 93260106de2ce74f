"""Compare TRL's GRPOTrainer with ours in one run: the same weights, images, lengths and loss.

    python experiments/speed/benchmark.py                            7 layers of the 2B model, two CPU threads
    python experiments/speed/benchmark.py --quick                    a quick test with the embedded model
    python experiments/speed/benchmark.py --device cuda --size 2b --dtype bfloat16
    python experiments/speed/benchmark.py --growth --chart growth.png
    python experiments/speed/benchmark.py --entropy                  share of a step that is entropy
    python experiments/speed/benchmark.py --flops-2b                 operations of the 2B model, on meta

First the log-probabilities, the loss and the gradient norm of both sides must agree. Then the command times
them in turns, one step each. It measures operations, memory and counts of each side in a process of its own.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "experiments/common"), str(ROOT)]
os.environ["HF_HUB_OFFLINE"] = "1"

from sizes import Size  # noqa: E402

from medvlm_r1.launch.silence import silence_libraries  # noqa: E402

# layers, blocks, prompts, completions per prompt, image tokens, text tokens, new tokens
SIZES = {
    "small": (7, 8, 2, 8, 400, 80, 96),
    "half": (7, 8, 2, 8, 400, 80, 96),
    "2b": (28, 32, 2, 8, 700, 100, 512),
    "quick": (2, 2, 2, 4, 16, 48, 12),
}
GROWTH = {"group": (2, 4, 8, 16, 32), "image_tokens": (64, 128, 256, 512, 1024)}


def main() -> None:
    arguments = parse()
    size = size_of(arguments)
    if arguments.flops_2b:
        from real_2b import show_arithmetic

        show_arithmetic(arguments.json)
        return
    silence_libraries()
    if arguments.alone:
        from compare import watch

        print(json.dumps(watch(size, arguments.alone, arguments.threads)), file=sys.__stdout__)
        return
    if arguments.entropy:
        from compare import entropy_times

        for times in entropy_times(size, arguments):
            share = times["entropy"] / times["step"]
            print(f"entropy {times['entropy']:.4f} s of {times['step']:.2f} s, {share:.2%}")
        return
    if arguments.growth:
        from charts import growth_chart

        points = {
            axis: [grown(arguments, axis, value) for value in values] for axis, values in GROWTH.items()
        }
        write(arguments.json, points)
        growth_chart(points, arguments.chart or Path("growth.png"))
        return

    from charts import bar_chart
    from compare import compare, machine, ratios
    from console import show

    results = {"machine": machine(arguments.threads), **compare(size, arguments)}
    for name, row in results["rows"].items():
        row.update(alone(arguments, name) if arguments.memory else {})
    results |= ratios(results["rows"])
    write(arguments.json, results)
    show(results)
    if arguments.chart:
        bar_chart(results, arguments.chart)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="the model, with defaults for the next seven options"
    )
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="--size quick")
    for name, help_text in (
        ("layers", "layers of the language model"),
        ("blocks", "blocks of the vision tower"),
        ("prompts", "prompts per step"),
        ("group", "completions per prompt"),
        ("image-tokens", "image tokens per prompt"),
        ("text-tokens", "other tokens per prompt"),
        ("new-tokens", "token limit of a completion"),
    ):
        parser.add_argument(f"--{name}", type=int, help=help_text)
    parser.add_argument("--lengths", choices=("full", "drawn"), default="full", help="lengths of completions")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tune", choices=("lora", "full"), default="lora", help="trained parameters")
    parser.add_argument("--beta", type=float, default=0.04, help="weight of the KL term")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, help="measured steps (default 10; quick 2; growth 1)")
    parser.add_argument(
        "--warmup", type=int, help="warm-up steps after the parity step (default 3; quick 0; growth 0)"
    )
    parser.add_argument("--rows", nargs="+", help="rows to run, by name or part of a name")
    parser.add_argument("--growth", action="store_true", help="vary the group size and the image tokens")
    parser.add_argument(
        "--flops-2b", action="store_true", help="operations of the packed and the repeated layout, 2B model"
    )
    parser.add_argument("--entropy", action="store_true", help="time the entropy of sampled tokens, CPU only")
    parser.add_argument("--no-memory", action="store_false", dest="memory", help="measure time only")
    parser.add_argument("--json", type=Path, help="output file of the results")
    parser.add_argument("--chart", type=Path, help="output file of the chart")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    short = arguments.growth or arguments.size == "quick"
    if arguments.steps is None:
        arguments.steps = 1 if arguments.growth else 2 if short else 10
    if arguments.warmup is None:
        arguments.warmup = 0 if short else 3
    return arguments


def size_of(arguments: argparse.Namespace) -> Size:
    names = ("layers", "blocks", "prompts", "group", "image_tokens", "text_tokens", "new_tokens")
    defaults = dict(zip(names, SIZES[arguments.size], strict=True))
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    same = ("lengths", "dtype", "tune", "beta", "device")
    return Size(model=arguments.size, **defaults | given, **{name: getattr(arguments, name) for name in same})


def again(arguments: argparse.Namespace, size: Size, *more: str) -> str:
    """Run this command in a process of its own and return its output."""
    command = [sys.executable, __file__, "--size", size.model, "--threads", str(arguments.threads)]
    for field in dataclasses.fields(size):
        if field.name != "model":
            command += [f"--{field.name.replace('_', '-')}", str(getattr(size, field.name))]
    done = subprocess.run([*command, *more], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(more)} in a process of its own ended with status {done.returncode}")
    return done.stdout


def alone(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure operations, memory and counts of one row; the quick size does so in this process."""
    print(f"{name}, alone ...", file=sys.stderr)
    if arguments.size == "quick":
        from compare import watch

        return watch(size_of(arguments), name, arguments.threads)
    return json.loads(again(arguments, size_of(arguments), "--alone", name).splitlines()[-1])


def grown(arguments: argparse.Namespace, axis: str, value: int) -> dict[str, Any]:
    """Measure one point of a sweep: TRL's best settings, and ours."""
    print(f"{axis} {value} ...", file=sys.stderr)
    size = dataclasses.replace(size_of(arguments), **{axis: value})
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "point.json"
        steps = ["--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
        memory = [] if arguments.memory else ["--no-memory"]
        again(arguments, size, *steps, *memory, "--rows", "best", "ours", "--json", str(found))
        return {axis: value, **json.loads(found.read_text())}


def write(path: Path | None, results: Any) -> None:
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
