"""Med-R1's generalisation matrices on phantoms: train on one domain, test on all."""

from collections.abc import Sequence
from typing import Literal

from medvlm_r1.data.splits import Questions
from medvlm_r1.phantom.modalities import MODALITIES
from medvlm_r1.phantom.questions import QUESTION_TYPES, PhantomSource

TASKS = {name.lower().replace(" ", "_"): name for name in QUESTION_TYPES}
"""Question types by their plain names, which are those of Med-R1's own splits."""


def phantom_domains(
    by: Literal["modality", "question_type"],
    domain: str,
    tests: Sequence[str] | None = None,
    n_train: int = 600,
    n_validation: int = 100,
    n_test: int = 100,
) -> Questions:
    """One row of a generalisation matrix.

    Args:
        by: what the domains are: modalities, each with questions of all types, or question types, each
            about all modalities by turns.
        domain: what to train on, e.g. ``xray`` or ``disease_diagnosis``.
        tests: what to test on; all domains by default.
        n_train, n_validation, n_test: sizes (``n_test`` of each test set).

    Raises:
        ValueError: there is no such domain, or a size is negative or 0.
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
