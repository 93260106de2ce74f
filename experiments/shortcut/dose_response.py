"""Draw accuracy against the strength of the shortcut, and write the tables of the README.

    python experiments/shortcut/dose_response.py outputs/sweeps --readme experiments/shortcut/README.md

Reads the finished runs of the sweeps shortcut_*; intervals and tests are those of `medvlm-r1 compare`.
Writes dose_response.png and dose_response.json into --out (default: the folder of this file), and replaces
the part of the README between its two markers.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.controls import BLANK, PRIOR
from medvlm_r1.evaluate.statistics import Interval, holm, over_seeds
from medvlm_r1.report.comparison import LEVEL
from medvlm_r1.report.figures import PRINT, PRINT_FONT, remove_frame, save_png
from medvlm_r1.report.groups import RunGroup, check_same_questions, group_difference, group_runs
from medvlm_r1.report.methods import method_order, method_title
from medvlm_r1.report.run_folder import Run, RunFolderError, find_runs
from medvlm_r1.report.tables.table import percent, span

SCOPES = {
    "MRI with the shortcut": ["mri"],
    "MRI without it": ["mri_plain"],
    "CT and X-ray": ["ct", "xray"],
}
PLAIN_TESTS = ["mri_plain", "ct", "xray"]
METHODS = ("zero_shot", "sft", "grpo")
PAIRS = (("sft", "zero_shot"), ("grpo", "zero_shot"), ("grpo", "sft"))
VARIED = {"beta": ("method", "beta"), "epochs": ("model", "recipe", "epochs"), "prompt": ("prompt", "name")}
DEFAULTS = {"beta": 0.04, "epochs": 1, "prompt": "medvlm_r1"}
CHANCE = 0.25
FIGURE = "![Accuracy against the share of training questions with the shortcut](dose_response.png)"
MARKERS = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Arm:
    """The runs of one method and setting with a shortcut of one strength, over their seeds."""

    group: RunGroup

    @property
    def dose(self) -> float:
        return float(self._setting("data", "train", "shortcut"))

    @property
    def method(self) -> str:
        return self.group.method

    @cached_property
    def varied(self) -> dict[str, float | str]:
        """What differs from the setting of the doses."""
        found = {name: self._setting(*path) for name, path in VARIED.items()}
        return {k: v for k, v in found.items() if v is not None and v != DEFAULTS[k]}

    @property
    def label(self) -> str:
        return ", ".join([method_title(self.method), *(f"{k} {v}" for k, v in self.varied.items())])

    def rate(self, tests: Sequence[str], control: str = PLAIN) -> Interval:
        return self.group.rate(tests, control=control)

    def follows_prior(self, tests: Sequence[str]) -> Interval:
        """Of the questions whose most frequent option of training is wrong: how often an answer takes it."""
        outcomes, images = [], []
        for test in tests:
            prior = self.group.runs[0].answers(test, PRIOR)
            asked = prior[prior["answer"].notna() & (prior["correct"] == 0)]
            taken = [
                run.answers(test).loc[asked.index, "answer"] == asked["answer"] for run in self.group.runs
            ]
            outcomes.append([one.astype(float).tolist() for one in taken])
            images.append(asked["image_group"].tolist())
        return over_seeds(outcomes, images)

    def _setting(self, *path: str):
        node = self.group.runs[0].config
        for key in path:
            node = node.get(key) if node else None
        return node


def read(sweeps: Path) -> list[Arm]:
    """Read the finished runs, the doses first.

    Raises:
        RunFolderError: no run is finished, or runs of one dose answered different questions.
    """
    folders = sorted(path for path in sweeps.glob("shortcut_*") if path.is_dir())
    runs = find_runs(folders)[0] if folders else []
    if not runs:
        raise RunFolderError(
            f"{sweeps} has no finished run of a sweep shortcut_*: run experiments/shortcut/run.sh"
        )
    by_dose: dict[float, list[Run]] = {}
    for run in runs:
        by_dose.setdefault(float(run.config["data"]["train"]["shortcut"]), []).append(run)
    arms = []
    for _, same in sorted(by_dose.items()):
        check_same_questions(same)
        arms += map(Arm, group_runs(same))
    return sorted(arms, key=lambda arm: (bool(arm.varied), arm.dose, method_order(arm.method), arm.label))


def tests_of(pairs: Sequence[tuple[Arm, Arm]]) -> list[dict]:
    """First minus second in every scope, on the same questions; p adjusted by Holm over all of them."""
    rows = [
        (first, second, scope, *group_difference(first.group, second.group, sets)[:2])
        for first, second in pairs
        for scope, sets in SCOPES.items()
    ]
    adjusted = holm([p for *_, p in rows])
    return [
        {"shortcut": first.dose, "first": first.label, "second": second.label, "on": scope}
        | {"difference": interval.as_dict(), "p": p, "adjusted": q}
        for (first, second, scope, interval, p), q in zip(rows, adjusted, strict=True)
    ]


def results(arms: Sequence[Arm]) -> dict:
    """Every number of the figure and the tables: fractions with intervals."""
    usual = {(arm.dose, arm.method): arm for arm in arms if not arm.varied and arm.method in METHODS}
    doses = sorted({dose for dose, _ in usual})
    pairs = [(usual[d, a], usual[d, b]) for d in doses for a, b in PAIRS if {(d, a), (d, b)} <= usual.keys()]
    # A variant is compared with its method as it is, SFT on rationales with SFT.
    others = [(arm, usual.get((arm.dose, arm.method.removesuffix("_rationale")))) for arm in arms]
    return {
        "doses": doses,
        "arms": [row(arm) for arm in arms],
        "differences": tests_of(pairs),
        "variants": tests_of([(arm, other) for arm, other in others if other not in (None, arm)]),
    }


def row(arm: Arm) -> dict:
    """The rates of one arm by scope."""
    controls = {"accuracy": PLAIN, "blank": BLANK, "prior": PRIOR}
    rates = {
        name: {scope: arm.rate(sets, control).as_dict() for scope, sets in SCOPES.items()}
        for name, control in controls.items()
    }
    own = {"shortcut": arm.dose, "method": arm.method, "label": arm.label, "varied": arm.varied}
    return own | {
        "seeds": arm.group.seeds,
        **rates,
        "follows_prior": arm.follows_prior(PLAIN_TESTS).as_dict(),
    }


@PRINT_FONT
def draw(found: dict, path: Path) -> Path:
    """Two rows of panels: accuracy with the image and with a grey one, against the dose, by scope."""
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    panels = figure.subplots(2, len(SCOPES), sharex=True, sharey=True)
    usual = [arm for arm in found["arms"] if not arm["varied"] and arm["method"] in METHODS]
    for axes_row, (rate, title) in zip(panels, (("accuracy", "image"), ("blank", "grey image")), strict=True):
        for axes, scope in zip(axes_row, SCOPES, strict=True):
            for number, method in enumerate(METHODS):
                arms = [arm for arm in usual if arm["method"] == method]
                line(axes, found["doses"], arms, rate, scope, (number - 1) * 0.09, PRINT.series[number])
            rule = {arm["shortcut"]: 100 * arm["prior"][scope]["value"] for arm in usual}
            values = [rule[dose] for dose in found["doses"]]
            axes.plot(values, color=PRINT.ink, lw=1.2, ls=(0, (4, 2)), label="option-text prior")
            axes.axhline(100 * CHANCE, color=PRINT.muted, lw=1, ls=(0, (1, 2)))
            axes.set_title(f"{scope}, {title}", loc="left", fontsize=9.5, color=PRINT.ink)
            remove_frame(axes, PRINT)
            axes.grid(axis="y", color=PRINT.rule, lw=0.7)
            axes.set(ylim=(0, 103), yticks=[0, 25, 50, 75, 100])
            axes.set_xticks(range(len(found["doses"])), [f"{dose:g}" for dose in found["doses"]])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9.5)
    y = "accuracy in percent with 95 % interval over seeds and questions"
    return save_png(figure, path, f"share of training questions with the shortcut; {y}; dotted: chance")


def line(
    axes: Axes, doses: list[float], arms: list[dict], rate: str, scope: str, shift: float, colour: str
) -> None:
    """One method's points with their intervals, beside those of the other methods."""
    if not arms:
        return
    x = [doses.index(arm["shortcut"]) + shift for arm in arms]
    ends = [[100 * arm[rate][scope][end] for arm in arms] for end in ("value", "low", "high")]
    axes.plot(x, ends[0], "o-", color=colour, lw=1.8, ms=5, label=method_title(arms[0]["method"]))
    axes.vlines(x, ends[1], ends[2], color=colour, lw=2)


def tables(found: dict) -> str:
    """The tables of the README, in Markdown."""
    usual = [arm for arm in found["arms"] if not arm["varied"] and arm["method"] in METHODS]
    varied = [arm for arm in found["arms"] if arm not in usual]
    heads = ["method", *SCOPES, "MRI with the shortcut, grey image", "follows the prior"]
    lines = [head(["shortcut", *heads])]
    for dose in found["doses"]:
        same = [arm for arm in usual if arm["shortcut"] == dose]
        lines += [cells([f"{dose:g}", arm["label"], *rates(arm)]) for arm in same]
        rule = [percent(same[0]["prior"][scope]["value"]) for scope in SCOPES]
        lines.append(cells([f"{dose:g}", "option-text prior", *rule, rule[0], "100.0"]))
    parts = ["\n".join(lines)]
    parts.append(difference_table(found["differences"], "shortcut"))
    if varied:
        parts.append("\n".join([head(heads), *(cells([arm["label"], *rates(arm)]) for arm in varied)]))
        parts.append(difference_table(found["variants"]))
    return "\n\n".join(parts)


def rates(arm: dict) -> list[str]:
    found = [arm["accuracy"][scope] for scope in SCOPES]
    found += [arm["blank"][next(iter(SCOPES))], arm["follows_prior"]]
    return [f"{percent(i.value)} ({span(i)})" for i in (Interval(**one) for one in found)]


def difference_table(tests: list[dict], *first: str) -> str:
    """One row per pair, one column per scope; bold where the adjusted test supports the difference."""
    lines = [head([*first, "difference, points", *SCOPES])]
    by_pair: dict[tuple, list[str]] = {}
    for test in tests:
        interval = Interval(**test["difference"])
        text = f"{percent(interval.value, signed=True)} ({span(interval, signed=True)})"
        pair = (*(f"{test[key]:g}" for key in first), f"{test['first']} \N{MINUS SIGN} {test['second']}")
        by_pair.setdefault(pair, []).append(f"**{text}**" if test["adjusted"] < LEVEL else text)
    return "\n".join([*lines, *(cells([*pair, *texts]) for pair, texts in by_pair.items())])


def head(names: Sequence[str]) -> str:
    return cells(names) + "\n" + "|---" * len(names) + "|"


def cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", type=Path, help="folder of the sweeps, outputs/sweeps")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of figure and numbers"
    )
    parser.add_argument(
        "--readme", type=Path, help="README.md with the two markers; default: print the tables"
    )
    args = parser.parse_args()
    try:
        found = results(read(args.sweeps))
    except RunFolderError as error:
        parser.error(str(error))
    draw(found, args.out / "dose_response.png")
    (args.out / "dose_response.json").write_text(json.dumps(found, indent=1) + "\n")
    if args.readme is None:
        print(tables(found))
        return
    before, start, rest = args.readme.read_text().partition(MARKERS[0])
    if not start or MARKERS[1] not in rest:
        parser.error(f"{args.readme} lacks the markers {' and '.join(MARKERS)}: add them around the tables")
    after = rest.partition(MARKERS[1])[2]
    args.readme.write_text(f"{before}{start}\n{FIGURE}\n\n{tables(found)}\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
