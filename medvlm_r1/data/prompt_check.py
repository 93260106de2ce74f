"""Find questions whose prompts a run could not use, before its first step instead of in its last hour."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from medvlm_r1.data.perturbation import PLAIN, Perturbation
from medvlm_r1.data.sample import BadRowError, Phase, Question, VQASample
from medvlm_r1.data.skipped import reason_summary
from medvlm_r1.data.splits import Questions, Source
from medvlm_r1.runs.progress import track

logger = logging.getLogger(__name__)

Fault = Callable[[Question], str | None]
"""Question -> why its prompt cannot be used, with a remedy; or ``None``."""


def check_prompts(
    questions: Questions,
    fault_in: Mapping[Phase, Fault],
    perturb: Callable[[Source], Sequence[list[Perturbation]]],
    on_bad_image: Literal["fail", "skip"] | None,
) -> Questions:
    """Check the prompt of every training, validation and test question, under every control.

    Args:
        fault_in: finds what is wrong with a prompt, by phase.
        perturb: test set -> the perturbations of each question.
        on_bad_image: ``fail`` raises for the first question; ``skip`` leaves such questions out and says so;
            ``None``: the data set has no such key, and the first raises.

    Returns:
        The questions to run with; those left out are in ``skipped``.

    Raises:
        BadRowError: a question cannot be used; the message names file, row and remedy, and counts the others.
        ValueError: no question of a part is left.
    """
    asked, evaluated = fault_in["train"], fault_in["evaluate"]
    train, faults = _usable(questions.train, [[s] for s in questions.train], asked)
    validation, more = _usable(questions.validation, [[s] for s in questions.validation], evaluated)
    faults += more
    tests = {}
    for name, source in questions.test.items():
        tests[name] = source
        while True:  # without a question, another may lend its images
            tests[name], more = _usable(tests[name], _variants(perturb(tests[name])), evaluated)
            faults += more
            if not more or not tests[name]:
                break
    if not faults:
        return questions
    if on_bad_image != "skip":
        remedy = " (data.rows.on_bad_image=skip leaves such questions out)" if on_bad_image else ""
        others = f" ({len(faults) - 1} more questions have such a fault)" if len(faults) > 1 else ""
        raise BadRowError(f"{faults[0]}{remedy}{others}")
    logger.warning("questions left out: %s; the first: %s", reason_summary(faults), faults[0])
    skipped = (*questions.skipped, *faults)
    return replace(questions, train=train, validation=validation, test=tests, skipped=skipped)


def _variants(perturbed: Sequence[list[Perturbation]]) -> Sequence[list[VQASample]]:
    return [[p.sample for p in each if p.control == PLAIN or not p.assistant_prefix] for each in perturbed]


def _usable(source: Source, variants: Sequence[list[VQASample]], fault: Fault) -> tuple[Source, list[str]]:
    """The questions of which no variant has a fault, and the faults of the others."""
    kept, faults = [], []
    for sample, asked in track(zip(source, variants, strict=True), "Checking prompts", len(source)):
        reason = next(filter(None, map(fault, asked)), None)
        if reason is None:
            kept.append(sample)
        else:
            faults.append(f"{sample.place or sample.id}: {reason}")
    return (kept if faults else source), faults
