"""Facts that a reader needs before the numbers, for each run group, in sentences.

Each verdict links to the place on the page that shows its evidence.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from medvlm_r1.audit.shortcuts import Shortcut
from medvlm_r1.evaluate.controls import BLANK
from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.methods import UNTRAINED
from medvlm_r1.report.page.audit import leaked_shares
from medvlm_r1.report.tables.controls import gain_over
from medvlm_r1.report.tables.table import percent, set_name, span

FREQUENT = 0.02  # share of unparsed or truncated answers above which a verdict names it


@dataclass(frozen=True)
class Verdict:
    """One sentence about a run group."""

    level: Literal["clear", "note", "warning"]  # note: something is unknown or unusual
    topic: str
    text: str
    target: str  # place on the page that shows the evidence, as the part of an address behind ``#``


def find_verdicts(c: Comparison, group: RunGroup) -> list[Verdict]:
    """All verdicts on one run group, over its seeds, warnings first."""
    verdicts = [
        *_leaks(group),
        *_shortcuts(group),
        *_alarms(group),
        *_image_use(c, group),
        *_format(c, group),
    ]
    return sorted(verdicts, key=lambda v: ("warning", "note", "clear").index(v.level))


def traces_link(**query: str) -> str:
    """Address of a view of the trace browser; keywords are the names of its form's fields."""
    return "traces?" + urlencode(query)


def _leaks(group: RunGroup) -> list[Verdict]:
    audits = [run.metrics.get("audit") or {} for run in group.runs]
    if not all("verdict" in audit for audit in audits):
        return [Verdict("note", "Leaks", "The data was not audited for leaks and shortcuts.", "provenance")]
    if group.method in UNTRAINED:
        return []
    found = []
    if shares := leaked_shares(group.runs):
        leaks = " and ".join(f"{percent(share)} % of {set_name(name)}" for name, share in shares.items())
        found.append(f"{leaks} shows a copy of a training image.")
    if shares := {
        leak["target"]: leak["same_group"] / leak["n"]
        for audit in audits
        for leak in audit["leaks"]
        if leak["source"] == "train" and leak["target"] != "validation" and leak.get("same_group")
    }:
        groups = " and ".join(f"{percent(share)} % of {set_name(name)}" for name, share in shares.items())
        found.append(f"{groups} shows another image of a training group (patient).")
    if found:
        return [Verdict("warning", "Leaks", text, "audit") for text in found]
    dropped = max(audit.get("dropped", 0) for audit in audits)
    text = f"{dropped} training questions were dropped: they showed test images." if dropped else ""
    partly = [audit for audit in audits if audit.get("images_checked", 1) < audit.get("images", 1)]
    if partly:
        checked = f"{partly[0]['images_checked']} of {partly[0]['images']}"
        return [Verdict("note", "Leaks", f"Pixels of {checked} images were checked for copies.", "audit")]
    return [Verdict("clear", "Leaks", text or "No test image is a copy of a training image.", "audit")]


def _shortcuts(group: RunGroup) -> list[Verdict]:
    rules = (group.runs[0].metrics.get("audit") or {}).get("shortcuts") or {}
    if not rules:
        return []
    above = []
    for name, scores in rules.items():
        rule, best = max(scores.items(), key=lambda item: item[1]["accuracy"])
        if Shortcut(**best).stands_out:
            above.append(
                f"{rule} alone answers {percent(best['accuracy'])} % of {set_name(name)} "
                f"(chance {percent(best['chance'])})"
            )
    if above:
        text = f"Without the image, {'; '.join(above)}."
        return [Verdict("warning", "Shortcuts", text, "shortcuts")]
    text = "No rule that ignores the image is clearly above chance."
    return [Verdict("clear", "Shortcuts", text, "shortcuts")]


def _alarms(group: RunGroup) -> list[Verdict]:
    if group.method in UNTRAINED:
        return []
    alarms = [
        f"{str(alarm['alarm']).replace('_', ' ')} at step {alarm['step']}"
        + (f" of seed {run.seed}" if len(group.runs) > 1 else "")
        for run in group.runs
        for alarm in run.alarms
    ]
    if not alarms:
        return [Verdict("clear", "Alarms", "No alarm during training.", "alarms")]
    more = f" and {len(alarms) - 3} more" if len(alarms) > 3 else ""
    return [Verdict("warning", "Alarms", f"{', '.join(alarms[:3]).capitalize()}{more}.", "alarms")]


def _image_use(c: Comparison, group: RunGroup) -> list[Verdict]:
    gains = {name: gain_over(group, name, BLANK) for name in c.test_sets}
    if None in gains.values():
        text = "Never tested with a blank image: how much the answers depend on the image is unknown."
        return [Verdict("note", "Image use", text, "accuracy")]
    points = {
        name: f"{percent(gain.value, signed=True)} points on {set_name(name)} ({span(gain, signed=True)})"
        for name, gain in gains.items()
    }
    used = ", ".join(points[name] for name, gain in gains.items() if gain.low > 0)
    unused = ", ".join(points[name] for name, gain in gains.items() if gain.low <= 0)
    texts = {}
    if used:
        texts["clear"] = f"The image adds {used} over a blank one."
    if unused:
        texts["warning"] = f"No gain over a blank image is shown: {unused}."
    return [Verdict(level, "Image use", text, "controls") for level, text in texts.items()]


def _format(c: Comparison, group: RunGroup) -> list[Verdict]:
    """Answers that cannot be parsed, and answers truncated at the token limit."""
    run = {"run": group.runs[0].name} if len(group.runs) == 1 else {}
    tables = [run.answers(name) for run in group.runs for name in c.test_sets]
    unparsed, truncated = (
        [1.0 - t["answered"].mean() for t in tables],
        [t["truncated"].mean() for t in tables],
    )
    shares = (
        ("Format", "unparsed", sum(unparsed) / len(tables), "have no answer in answer tags"),
        ("Length", "truncated", sum(truncated) / len(tables), "are truncated at the token limit"),
    )
    verdicts = []
    for topic, outcome, share, text in shares:
        if share > FREQUENT:
            link = traces_link(view="test", outcome=outcome, **run)
            verdicts.append(Verdict("note", topic, f"{percent(share)} % of the test answers {text}.", link))
    return verdicts
