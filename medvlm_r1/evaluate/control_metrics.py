"""What the controls say about a run: the section ``controls`` of ``metrics.json``.

By test set:

=====================  ===============================================================================
rates                  by control: accuracy and format rates with intervals, questions, questions left out
image_gain             accuracy with the picture less accuracy with a blank one, on the same questions
swap_gain              the same less another question's picture
reasoning_effect       the same less an answer without reasoning
prior_gain             the same less the option-text prior
order_consistency      share of questions for which the same option text is chosen in both orders, of
                       those with a strict letter in both
reasoning_contradicts  share of the plain answers whose letter is another option than the one named in
                       think tags, of those with a strict letter and exactly one option's text named there;
                       without yes/no questions, as a "no" in a sentence need not be the option
not_run                controls that were wanted, and why they are not there
labels                 what the audit found that touches every one of these numbers
verdict                whether the picture is used, in words
=====================  ===============================================================================

Differences are paired, with intervals that draw whole image groups. What has no question is ``null``.
Questions go by their ids, as in the report's tables, so that both draw the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.data.sample import LETTERS
from medvlm_r1.evaluate.audit_warnings import audit_warnings
from medvlm_r1.evaluate.controls import BLANK, CUT, PERMUTED, PRIOR, SWAPPED
from medvlm_r1.evaluate.predictions import Prediction
from medvlm_r1.evaluate.statistics import Interval, paired_difference, proportion
from medvlm_r1.prompts import mentioned_options, tag_contents

GAINS = {BLANK: "image_gain", SWAPPED: "swap_gain", CUT: "reasoning_effect", PRIOR: "prior_gain"}
Scores = dict[str, float]  # question -> right (1) or wrong (0), or the chance to be right


def summarise_controls(
    predictions: Sequence[Prediction],
    controls: Sequence[str],
    not_run: Mapping[str, str],
    audit: Mapping[str, Any],
    trained: bool,
) -> dict[str, dict]:
    """The section, by test set.

    Args:
        predictions: of all test sets and controls, the prior's among them.
        controls, not_run: see :func:`~medvlm_r1.evaluate.controls.controls_of`.
        audit: its plain form; empty without one.
        trained: whether the run was trained: a leak touches no other.
    """
    return {
        name: _Answered([p for p in predictions if p.test_set == name]).contrasts(controls)
        | {"not_run": dict(not_run), "labels": audit_warnings(audit, trained, name)}
        for name in dict.fromkeys(p.test_set for p in predictions)
    }


class _Answered:
    """One test set's answers."""

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self.rows: dict[str, dict[str, Prediction]] = {}
        for row in predictions:
            self.rows.setdefault(row.control, {})[row.sample_id] = row
        self.plain = self.rows[PLAIN]

    def contrasts(self, controls: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"rates": {control: self._rates(control) for control in controls}}
        for control, name in GAINS.items():
            if control in controls:
                found[name] = self._gain(control)
        if PERMUTED in controls:
            found["order_consistency"] = self._rate(self._consistent())
        found["reasoning_contradicts"] = self._rate(self._contradicting())
        return found | {"verdict": verdict(found.get("image_gain"))}

    def scores(self, control: str) -> Scores:
        return {name: float(row.correct) for name, row in self.rows.get(control, {}).items()}

    def _rates(self, control: str) -> dict[str, Any]:
        scores, rows = self.scores(control), self.rows.get(control, {})
        rates: dict[str, Any] = {
            "accuracy": self._rate(scores),
            "n": len(scores),
            "left_out": len(self.plain) - len(scores),
        }
        if control != PRIOR:
            rates["format"] = {
                field: self._rate({name: float(getattr(row, field)) for name, row in rows.items()})
                for field in ("well_formed", "answered")
            }
        return rates

    def _gain(self, control: str) -> dict | None:
        """Plain less ``control``, on the questions that were asked under both."""
        under = self.scores(control)
        both = sorted(self.plain.keys() & under.keys())
        if not both:
            return None
        plain = self.scores(PLAIN)
        a, b = [plain[name] for name in both], [under[name] for name in both]
        return paired_difference(a, b, self._groups(both)).as_dict()

    def _consistent(self) -> Scores:
        there = self.rows.get(PERMUTED, {})
        pairs = {name: (_chosen(self.plain[name]), _chosen(row)) for name, row in there.items()}
        return {name: float(a == b) for name, (a, b) in pairs.items() if a is not None and b is not None}

    def _contradicting(self) -> Scores:
        found = {}
        for name, row in self.plain.items():
            if {"yes", "no"} & {option.casefold() for option in row.options}:
                continue
            places = mentioned_options(tag_contents(row.text, "think") or "", row.options)
            chosen = _chosen(row)
            if len(places) == 1 and chosen is not None:
                found[name] = float(row.options[places[0]] != chosen)
        return found

    def _rate(self, scores: Scores) -> dict | None:
        if not scores:
            return None
        names = sorted(scores)
        values, groups = [scores[name] for name in names], self._groups(names)
        return proportion(values, groups).as_dict()

    def _groups(self, names: Sequence[str]) -> list[str]:
        return [self.plain[name].image_group for name in names]


def _chosen(row: Prediction) -> str | None:
    """The text of the option that an answer chose, by the strict reading."""
    if not row.options or row.answer is None:
        return None
    return row.options[LETTERS.index(row.answer)]


def verdict(gain: Mapping[str, Any] | None) -> str:
    """Whether the picture is used, by the interval of the image gain.

    Args:
        gain: plain form of an :class:`~medvlm_r1.evaluate.statistics.Interval`; ``None`` where no question
            was asked with a blank picture.
    """
    if gain is None:
        return "no answer to a blank picture: whether the picture is used is not known"
    gain = Interval(**gain)
    ends = f"({_points(gain.low)} to {_points(gain.high)})"
    unsure = ", interval includes zero" if gain.low <= 0 <= gain.high else ""
    return f"image gain {_points(gain.value, '+')} points {ends}{unsure}: {interpret_gain(gain)}"


def interpret_gain(gain: Interval) -> str:
    """What an image gain says, in words."""
    if gain.low > 0:
        return "the picture is used"
    return "better without the picture" if gain.high < 0 else "no evidence that the picture is used"


def _points(value: float, sign: str = "") -> str:
    text = f"{100 * value:{sign}.1f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else "0.0"
