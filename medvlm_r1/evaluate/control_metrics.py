"""Compare the controls of a run: the section ``controls`` of ``metrics.json``.

By test set:

=====================  ===============================================================================
rates                  by control: accuracy and format rates with intervals, questions, questions left out
image_gain             accuracy with the image minus accuracy with a blank one, on the same questions
swap_gain              accuracy with the image minus accuracy with another question's image
reasoning_effect       accuracy with reasoning minus accuracy without
prior_gain             accuracy minus that of the option-text prior
order_consistency      share of questions whose answer keeps its option text in both orders, of those with a
                       strict letter in both
reasoning_contradicts  share of plain answers whose letter differs from the option named in the think tags,
                       of those with a strict letter and exactly one named option, which is not denied;
                       without yes/no questions, because a "no" in a sentence need not be the option
not_run                controls that were requested and skipped, with the reason
labels                 audit warnings that affect every number here
verdict                one sentence: whether the model uses the image
=====================  ===============================================================================

Differences are paired; their intervals resample whole image groups. Values without questions are ``null``.
Questions are sorted by id, as in the report's tables, so that both draw the same resamples.
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
from medvlm_r1.reading.lenient import affirmed_options

GAINS = {BLANK: "image_gain", SWAPPED: "swap_gain", CUT: "reasoning_effect", PRIOR: "prior_gain"}
Scores = dict[str, float]  # question id -> correct (1) or not (0), or the probability to be correct


def summarise_controls(
    predictions: Sequence[Prediction],
    controls: Sequence[str],
    not_run: Mapping[str, str],
    audit: Mapping[str, Any],
    trained: bool,
) -> dict[str, dict]:
    """Compute the section, by test set.

    Args:
        predictions: of all test sets and controls, including the prior's.
        controls, not_run: see :func:`~medvlm_r1.evaluate.controls.controls_of`.
        audit: JSON form of the audit; empty without one.
        trained: whether the run trained; leaks affect only trained runs.
    """
    return {
        name: _TestSet([p for p in predictions if p.test_set == name]).compare(controls)
        | {"not_run": dict(not_run), "labels": audit_warnings(audit, trained, name)}
        for name in dict.fromkeys(p.test_set for p in predictions)
    }


class _TestSet:
    """The predictions of one test set, by control and question."""

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self.rows: dict[str, dict[str, Prediction]] = {}
        for row in predictions:
            self.rows.setdefault(row.control, {})[row.sample_id] = row
        self.plain = self.rows[PLAIN]

    def compare(self, controls: Sequence[str]) -> dict[str, Any]:
        section: dict[str, Any] = {"rates": {control: self._rates(control) for control in controls}}
        for control, name in GAINS.items():
            if control in controls:
                section[name] = self._gain(control)
        if PERMUTED in controls:
            section["order_consistency"] = self._rate(self._consistent())
        section["reasoning_contradicts"] = self._rate(self._contradicting())
        return section | {"verdict": verdict(section.get("image_gain"))}

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
        """Accuracy under ``image`` minus accuracy under ``control``, on the questions that have both."""
        scores = self.scores(control)
        both = sorted(self.plain.keys() & scores.keys())
        if not both:
            return None
        a, b = ([by_name[name] for name in both] for by_name in (self.scores(PLAIN), scores))
        return paired_difference(a, b, self._groups(both)).as_dict()

    def _consistent(self) -> Scores:
        permuted = self.rows.get(PERMUTED, {})
        pairs = {name: (_chosen(self.plain[name]), _chosen(row)) for name, row in permuted.items()}
        return {name: float(a == b) for name, (a, b) in pairs.items() if a is not None and b is not None}

    def _contradicting(self) -> Scores:
        scores = {}
        for name, row in self.plain.items():
            if {"yes", "no"} & {option.casefold() for option in row.options}:
                continue
            reasoning = tag_contents(row.text, "think") or ""
            mentioned = mentioned_options(reasoning, row.options)
            chosen = _chosen(row)
            if len(mentioned) == 1 and mentioned == affirmed_options(reasoning, row.options) and chosen:
                scores[name] = float(row.options[mentioned[0]] != chosen)
        return scores

    def _rate(self, scores: Scores) -> dict | None:
        if not scores:
            return None
        names = sorted(scores)
        return proportion([scores[name] for name in names], self._groups(names)).as_dict()

    def _groups(self, names: Sequence[str]) -> list[str]:
        return [self.plain[name].image_group for name in names]


def _chosen(row: Prediction) -> str | None:
    """Text of the option that the strict letter chooses."""
    return row.options[LETTERS.index(row.answer)] if row.options and row.answer is not None else None


def verdict(gain: Mapping[str, Any] | None) -> str:
    """State whether the model uses the image, by the interval of the image gain.

    Args:
        gain: JSON form of an :class:`~medvlm_r1.evaluate.statistics.Interval`; ``None`` without questions
            under ``blank``.
    """
    if gain is None:
        return "no answer to a blank image: whether the image is used is not known"
    gain = Interval(**gain)
    ends = f"({_points(gain.low)} to {_points(gain.high)})"
    unsure = ", interval includes zero" if gain.low <= 0 <= gain.high else ""
    return f"image gain {_points(gain.value, '+')} points {ends}{unsure}: {interpret_gain(gain)}"


def interpret_gain(gain: Interval) -> str:
    """State in words what an image gain shows."""
    if gain.low > 0:
        return "the image is used"
    return "better without the image" if gain.high < 0 else "no evidence that the image is used"


def _points(value: float, sign: str = "") -> str:
    text = f"{100 * value:{sign}.1f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else "0.0"
