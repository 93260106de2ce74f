"""What an audit says that a reader of a test set's numbers has to know, by test set."""

from collections.abc import Mapping
from typing import Any

from medvlm_r1.audit.shortcuts import Shortcut


def leak_shares(audit: Mapping[str, Any], trained: bool) -> dict[str, float]:
    """Test set -> share of its questions that show a copy of an image that the run was trained on.

    Args:
        audit: its plain form; empty without one.
        trained: whether the run was: a leak touches no other.

    Empty too where those training questions were dropped.
    """
    if not trained or audit.get("dropped"):
        return {}
    return {
        leak["target"]: leak["questions"] / leak["n"]
        for leak in audit.get("leaks", [])
        if leak["source"] == "train" and leak["target"] != "validation" and leak["questions"]
    }


def strong_shortcuts(audit: Mapping[str, Any]) -> dict[str, tuple[str, Shortcut]]:
    """Test set -> the best of the rules that see no picture, where it stands out from guessing."""
    found = {}
    for name, rules in audit.get("shortcuts", {}).items():
        scores = {rule: Shortcut(**score) for rule, score in rules.items()}
        rule = max(scores, key=lambda rule: scores[rule].accuracy, default=None)
        if rule is not None and scores[rule].stands_out:
            found[name] = rule, scores[rule]
    return found


def audit_warnings(audit: Mapping[str, Any], trained: bool, test_set: str) -> list[str]:
    """What touches every number of a test set, in words."""
    told = []
    if share := leak_shares(audit, trained).get(test_set):
        told.append(f"{100 * share:.1f} % of the questions show a copy of a training image")
    if shortcut := strong_shortcuts(audit).get(test_set):
        rule, score = shortcut
        told.append(
            f"{rule} alone scores {100 * score.accuracy:.1f} % without looking "
            f"(chance {100 * score.chance:.1f})"
        )
    return told
