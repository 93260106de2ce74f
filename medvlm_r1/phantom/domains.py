"""Med-R1's generalisation matrices for phantoms: train on one domain, test on all."""

from collections.abc import Sequence
from typing import Literal

from medvlm_r1.data.splits import Questions
from medvlm_r1.phantom.modalities import MODALITIES
from medvlm_r1.phantom.questions import QUESTION_TYPES, PhantomSource

TASKS = {name.lower().replace(" ", "_"): name for name in QUESTION_TYPES}
"""Name in Med-R1's splits -> question type."""


def phantom_domains(
    by: Literal["modality", "question_type"],
    domain: str,
    tests: Sequence[str] | None = None,
    n_train: int = 600,
    n_validation: int = 100,
    n_test: int = 100,
) -> Questions:
    """Return the questions of one row of a generalisation matrix.

    Args:
        by: kind of domain: modalities, each with questions of all types, or question types, each cycling
            through all modalities.
        domain: training domain, e.g. ``xray`` or ``disease_diagnosis``.
        tests: test domains; all by default.
        n_train, n_validation, n_test: numbers of questions (``n_test`` per test set).

    Raises:
        ValueError: a domain is unknown, or a size is negative or 0.
    """
    known = tuple(MODALITIES) if by == "modality" else tuple(TASKS)
    for name in (domain, *(tests or ())):
        if name not in known:
            raise ValueError(f"phantoms have no domain {name!r} by {by}: use one of {', '.join(known)}")

    def part(name: str, n: int, split: str) -> PhantomSource:
        if by == "modality":
            return PhantomSource(name, n, split)
        return PhantomSource(tuple(MODALITIES), n, split, question_types=(TASKS[name],))

    return Questions(
        train=part(domain, n_train, "train"),
        validation=part(domain, n_validation, "validation"),
        test={name: part(name, n_test, "test") for name in tests or known},
    )
