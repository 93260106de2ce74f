"""Audit results that affect the numbers of a test set: leaks and shortcuts."""

from collections.abc import Mapping
from typing import Any

from medvlm_r1.audit.shortcuts import Shortcut


def leak_shares(audit: Mapping[str, Any], trained: bool) -> dict[str, float]:
    """Test set -> share of its questions that show a copy of a training image.

    Empty if the run did not train or dropped those training questions. Images of refused rows do not count:
    the model is not trained on them. ``audit`` is the audit's JSON form, empty without one.
    """
    if not trained or audit.get("dropped"):
        return {}
    return {
        leak["target"]: questions / leak["n"]
        for leak in audit.get("leaks", [])
        if leak["source"] == "train"
        and leak["target"] != "validation"
        and (questions := leak["questions"] - leak.get("of_refused", 0))
    }


def strong_shortcuts(audit: Mapping[str, Any]) -> dict[str, tuple[str, Shortcut]]:
    """Test set -> the best rule that sees no image and its score, if clearly above chance."""
    strong = {}
    for name, rules in audit.get("shortcuts", {}).items():
        scores = {rule: Shortcut(**score) for rule, score in rules.items()}
        rule = max(scores, key=lambda rule: scores[rule].accuracy, default=None)
        if rule is not None and scores[rule].stands_out:
            strong[name] = rule, scores[rule]
    return strong


def audit_warnings(audit: Mapping[str, Any], trained: bool, test_set: str) -> list[str]:
    """Return one sentence per audit result that affects a test set's numbers."""
    warnings = []
    if share := leak_shares(audit, trained).get(test_set):
        warnings.append(f"{100 * share:.1f} % of the questions show a copy of a training image")
    if shortcut := strong_shortcuts(audit).get(test_set):
        rule, score = shortcut
        text = f"{rule} alone scores {100 * score.accuracy:.1f} % without looking"
        warnings.append(f"{text} (chance {100 * score.chance:.1f})")
    return warnings
