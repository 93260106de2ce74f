"""What a reader has to know before reading a number, configuration by configuration, in words.

Each verdict links to the place on the page that shows what it rests on.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from medvlm_r1.audit.shortcuts import Shortcut
from medvlm_r1.evaluate.controls import BLANK
from medvlm_r1.evaluate.statistics import Interval
from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.page.audit import leaked_over
from medvlm_r1.report.tables.controls import gain_over
from medvlm_r1.report.tables.table import percent, set_name, span

OFTEN = 0.02  # share of answers without a reading, or cut at the limit, from which on it is said

Level = Literal["clear", "note", "warning"]


@dataclass(frozen=True)
class Verdict:
    """One sentence.

    Attributes:
        level: ``clear``, ``note`` (something is unknown or unusual) or ``warning``.
        about: what it judges.
        text: the sentence.
        target: where on the page it is shown, as the part of an address behind ``#``.
    """

    level: Level
    about: str
    text: str
    target: str


def verdicts(c: Comparison, row: RunGroup) -> list[Verdict]:
    """All verdicts on one configuration, over its seeds."""
    found = [*_leaks(row), *_shortcuts(row), *_alarms(row), *_looking(c, row), *_reading(c, row)]
    return sorted(found, key=lambda v: ("warning", "note", "clear").index(v.level))


def traces_link(**query: str) -> str:
    """Address of a view of the trace browser; names are those of its form."""
    return "traces?" + urlencode(query)


def _leaks(row: RunGroup) -> list[Verdict]:
    audits = [run.metrics.get("audit") or {} for run in row.runs]
    if not all("verdict" in found for found in audits):
        return [Verdict("note", "Leaks", "The data was not audited for leaks and shortcuts.", "provenance")]
    if row.method == "zero_shot":
        return []
    if shares := leaked_over(row.runs):
        told = " and ".join(f"{percent(share)} % of {set_name(name)}" for name, share in shares.items())
        return [Verdict("warning", "Leaks", f"{told} shows a copy of a training image.", "audit")]
    dropped = max(found.get("dropped", 0) for found in audits)
    text = f"{dropped} training questions were dropped: they showed test images." if dropped else ""
    checked = [f for f in audits if f.get("images_checked", 1) < f.get("images", 1)]
    if checked:
        seen = f"{checked[0]['images_checked']} of {checked[0]['images']}"
        return [Verdict("note", "Leaks", f"Pixels of {seen} images were checked for copies.", "audit")]
    return [Verdict("clear", "Leaks", text or "No test image is a copy of a training image.", "audit")]


def _shortcuts(row: RunGroup) -> list[Verdict]:
    rules = (row.runs[0].metrics.get("audit") or {}).get("shortcuts") or {}
    if not rules:
        return []
    told = []
    for name, scores in rules.items():
        rule, best = max(scores.items(), key=lambda item: item[1]["accuracy"])
        if Shortcut(**best).stands_out:
            told.append(
                f"{rule} alone answers {percent(best['accuracy'])} % of {set_name(name)} "
                f"(chance {percent(best['chance'])})"
            )
    if told:
        text = "; ".join(told)
        return [Verdict("warning", "Shortcuts", f"Without looking, {text}.", "shortcuts")]
    text = "No rule that sees no picture stands out above chance."
    return [Verdict("clear", "Shortcuts", text, "shortcuts")]


def _alarms(row: RunGroup) -> list[Verdict]:
    raised = [(run, alarm) for run in row.runs for alarm in run.alarms]
    if row.method == "zero_shot":
        return []
    if not raised:
        return [Verdict("clear", "Alarms", "None was raised while it trained.", "alarms")]
    seeds = len(row.runs) > 1
    told = [
        f"{str(alarm['alarm']).replace('_', ' ')} at step {alarm['step']}"
        + (f" of seed {run.seed}" if seeds else "")
        for run, alarm in raised
    ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return [Verdict("warning", "Alarms", f"Raised: {', '.join(told[:3])}{more}.", "alarms")]


def _looking(c: Comparison, row: RunGroup) -> list[Verdict]:
    gains = {name: gain_over(row, name, BLANK) for name in c.test_sets}
    if None in gains.values():
        text = "Never tested with the picture blanked: how much it looks is unknown."
        return [Verdict("note", "Looking", text, "accuracy")]
    looks = {name: gain for name, gain in gains.items() if gain.low > 0}
    blind = {name: gain for name, gain in gains.items() if gain.low <= 0}
    found = []
    if looks:
        text = f"The picture adds {_points(looks)} over a blank one."
        found.append(Verdict("clear", "Looking", text, "controls"))
    if blind:
        text = f"No gain over a blank picture is shown: {_points(blind)}."
        found.append(Verdict("warning", "Looking", text, "controls"))
    return found


def _points(gains: dict[str, Interval]) -> str:
    return ", ".join(
        f"{percent(gain.value, signed=True)} points on {set_name(name)} ({span(gain, signed=True)})"
        for name, gain in gains.items()
    )


def _reading(c: Comparison, row: RunGroup) -> list[Verdict]:
    """Answers that no letter could be read from, and answers cut at the limit."""
    one = {"run": row.runs[0].name} if len(row.runs) == 1 else {}
    plain = [run.answers(name) for run in row.runs for name in c.test_sets]
    found = []
    unread = _mean(1.0 - answers["answered"].mean() for answers in plain)
    cut = _mean(answers["truncated"].mean() for answers in plain)
    for about, outcome, share, what in (
        ("Format", "unread", unread, "hold no answer in answer tags"),
        ("Length", "truncated", cut, "were cut at the token limit"),
    ):
        if share > OFTEN:
            link = traces_link(view="test", outcome=outcome, **one)
            found.append(Verdict("note", about, f"{percent(share)} % of its test answers {what}.", link))
    return found


def _mean(values) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)
