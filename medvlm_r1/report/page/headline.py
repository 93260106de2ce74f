"""The text above the sections: title, main result in sentences, and the caveat of a miniature run."""

from collections.abc import Sequence

from medvlm_r1.report.comparison import MEAN, OUTSIDE, Comparison, Difference
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.methods import is_rl_and_sft, method_title
from medvlm_r1.report.run_folder import flatten
from medvlm_r1.report.tables.table import p_text, percent, set_name, span


def title(c: Comparison) -> str:
    """``GRPO, SFT and zero-shot on MRI, CT and X-ray``."""
    sets = _join([set_name(t) for t in c.test_sets])
    if len(c.groups) == 1:
        return f"{c.groups[0].label} on {sets}"
    names = [group.runs[0].title for group in reversed(c.groups)]
    names = [name.lower() if name == method_title("zero_shot") else name for name in dict.fromkeys(names)]
    return f"{_join(names)} on {sets}"


def headline(c: Comparison) -> str:
    """The main result in sentences, with its uncertainty and whether a test supports it."""
    main = next((d for d in c.differences if is_rl_and_sft(*_methods(c, d))), None)
    main = main or next(iter(reversed(c.differences)), None)
    seeds = " " + _seeds([g for g in c.groups if main is None or g.label in (main.first, main.second)])
    if main is None:
        label = c.groups[0].label
        rates = [
            f"{percent(i.value)} % on {set_name(t)} ({span(i)}; chance {percent(c.chance[t])})"
            for t, i in c.accuracy[label].items()
            if t in c.test_sets
        ]
        return f"{label} answers {_join(rates)} correctly; 95 % intervals in brackets.{seeds}"

    by_scope = {d.where: d for d in c.differences if (d.first, d.second) == (main.first, main.second)}
    outside = [t for t in c.test_sets if t not in c.in_domain]
    if c.in_domain and outside:
        where = f"Outside the training domain ({_join([set_name(t) for t in outside])})"
        places = {OUTSIDE if OUTSIDE in by_scope else outside[0]: where}
        places |= {t: f"In domain ({set_name(t)})" for t in c.in_domain}
    elif MEAN in by_scope:
        places = {MEAN: f"Over the {len(c.test_sets)} test sets"}
    else:
        places = {c.test_sets[0]: f"On {set_name(c.test_sets[0])}"}
    text = " ".join(_sentence(c, where, by_scope[scope]) for scope, where in places.items())
    others = sum(_methods(c, d) == _methods(c, main) and d.where == main.where for d in c.differences) - 1
    return text + seeds + (f" {others} more such pairs of rows are in the tables." if others else "")


def caveat(c: Comparison) -> str:
    """What a run with the embedded model or synthetic images cannot show; empty for any other run."""
    run = c.groups[0].runs[0]
    values = flatten(run.config)
    tiny = values.get("model.path") == "embedded"
    phantom = any("phantom" in str(v) for k, v in values.items() if k.startswith("data.") and "_target_" in k)
    parts = ["the embedded model of a few million parameters"] * tiny + ["synthetic phantom images"] * phantom
    if not parts:
        return ""
    start = (
        "Without reasoning, this model answers at chance, so SFT on bare letters has little to learn from."
    )
    return (
        f"Miniature: {_join(parts)}. It shows that the pipeline works, and one mechanism at most; "
        f"it is no evidence about medical images, large models or the papers' claim. {start if tiny else ''}"
    ).rstrip()


def _sentence(c: Comparison, where: str, d: Difference) -> str:
    a, b = (percent(c.accuracy[label][d.where].value) for label in (d.first, d.second))
    verdict = "" if d.supported else ", which the test does not support as a difference"
    points, ends = percent(d.interval.value, signed=True), span(d.interval, signed=True)
    test = f"95 % interval {ends}; adjusted p {p_text(d.adjusted)}"
    return (
        f"{where}, {d.first} answers {a} % correctly and {d.second} {b} %: {points} points ({test}){verdict}."
    )


def _seeds(groups: Sequence[RunGroup]) -> str:
    counts = [len(group.runs) for group in groups]
    if max(counts) == 1:
        return "One seed: the spread between seeds is not measured."
    if len(set(counts)) == 1:
        return f"Means over {counts[0]} seeds."
    return "Seeds: " + _join([f"{n} of {g.label}" for g, n in zip(groups, counts, strict=True)]) + "."


def _methods(c: Comparison, d: Difference) -> tuple[str, str]:
    method = {group.label: group.method for group in c.groups}
    return method[d.first], method[d.second]


def _join(parts: Sequence[str]) -> str:
    """``A, B and C``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
