"""Predictions, one row per answered question, and their metrics."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medvlm_r1.audit.shortcuts import hit_probability, prior_guesses
from medvlm_r1.data.perturbation import PLAIN, Perturbation
from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate.controls import CONTROLS, PRIOR
from medvlm_r1.evaluate.samples import passed
from medvlm_r1.evaluate.statistics import proportion
from medvlm_r1.prompts import Answer, f1_score, is_correct, is_correct_leniently
from medvlm_r1.reading.released import RELEASED, RULES, check_reading
from medvlm_r1.runs.durable import write_whole


@dataclass
class Prediction:
    """The answer to one test question; a row of ``predictions.jsonl``.

    The key is (step, test_set, control, sample_id). ``answer`` is the strict letter; ``correct`` and
    ``correct_lenient`` score the strict and the lenient letter; ``tokens`` includes the end-of-turn token.
    For open questions ``options`` is empty, ``answer`` and ``gold`` are texts, ``correct`` is exact match.

    The prior has no text. If it ranks several options equally, ``answer`` is ``None`` and ``correct`` is the
    probability that a uniform draw among them is correct.

    ``correct_released`` scores the answer by the released evaluation code of the prompt's paper; ``None``
    unless ``evaluation.reading=released``, and for open questions and the prior.

    ``options`` and ``gold`` are those of the perturbed question; for ``order`` and ``picture_of`` see
    :class:`~medvlm_r1.data.perturbation.Perturbation`.

    Where a method samples several answers, ``samples`` has all of them in their order, with vote, format and
    mean log-probability, and ``chosen`` is the index of the one that this row scores.
    """

    run: str
    step: int
    test_set: str
    sample_id: str
    image_group: str
    modality: str
    question_type: str
    control: str
    question: str
    options: list[str]
    text: str
    answer: str | None
    gold: str
    correct: bool | float
    correct_lenient: bool | float
    well_formed: bool
    answered: bool
    tokens: int
    truncated: bool
    order: list[int] | None = None
    picture_of: str | None = None
    correct_released: bool | None = None
    chosen: int | None = None
    samples: list[dict[str, Any]] | None = None

    @property
    def completion_tokens(self) -> int:
        """Tokens of all completions of the question."""
        return self.tokens if self.samples is None else sum(sample["tokens"] for sample in self.samples)

    @classmethod
    def from_answer(
        cls,
        perturbation: Perturbation,
        answer: Answer,
        tokens: int,
        truncated: bool,
        run: str,
        step: int,
        test_set: str,
    ) -> "Prediction":
        """Build the row of one answered question."""
        sample = perturbation.sample
        return cls(
            run=run,
            step=step,
            test_set=test_set,
            sample_id=sample.id,
            image_group=sample.image_group,
            modality=sample.modality,
            question_type=sample.question_type,
            control=perturbation.control,
            question=sample.question,
            options=list(sample.options),
            text=answer.text,
            answer=answer.content if sample.is_open else answer.letter,
            gold=sample.answer,
            correct=is_correct(answer, sample),
            correct_lenient=is_correct_leniently(answer, sample),
            well_formed=answer.well_formed,
            answered=answer.answered,
            tokens=tokens,
            truncated=truncated,
            order=None if perturbation.order is None else list(perturbation.order),
            picture_of=perturbation.picture_of,
        )


def prior_predictions(
    train: Sequence[VQASample], tests: Mapping[str, Sequence[VQASample]], run: str, step: int
) -> list[Prediction]:
    """Answer every test question that has options by the option-text prior fitted on ``train``."""
    rows = []
    for name, source in tests.items():
        for sample, letters in prior_guesses(train, list(source)):
            chance = hit_probability(sample, letters)
            answer = Answer("", letter=letters[0] if len(letters) == 1 else None)
            row = Prediction.from_answer(Perturbation(PRIOR, sample), answer, 0, False, run, step, name)
            row.correct = row.correct_lenient = bool(chance) if chance in (0, 1) else chance
            rows.append(row)
    return rows


def add_released(predictions: Iterable[Prediction], reading: str, prompt: str) -> list[Prediction]:
    """Score the answers by the released evaluation code of the prompt's paper, if ``reading`` asks for it.

    Args:
        reading: ``evaluation.reading``.
        prompt: name of the prompt.

    Raises:
        ValueError: see :func:`~medvlm_r1.reading.released.check_reading`.
    """
    check_reading(reading, prompt)
    if reading != RELEASED:
        return list(predictions)
    read = RULES[prompt]

    def score(row: Prediction) -> bool | None:
        return read(row.text) == row.gold if row.options and row.control != PRIOR else None

    return [replace(row, correct_released=score(row)) for row in predictions]


def sort_predictions(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Sort by test set (in order of first occurrence), then by control; questions keep their order."""
    rows = list(predictions)
    sets = list(dict.fromkeys(row.test_set for row in rows))
    return sorted(rows, key=lambda row: (sets.index(row.test_set), CONTROLS.index(row.control)))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write ``predictions.jsonl`` atomically."""
    rows = (json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in predictions)
    write_whole(path, "".join(rows))


def summarise(predictions: Sequence[Prediction]) -> dict[str, dict]:
    """Compute the sections of ``metrics.json`` for the control ``image``, by test set.

    Values are fractions with intervals (Wilson, or a bootstrap over image groups if questions share one).
    ``tokens`` holds the mean completion length and the share of completions cut at the limit; ``open``, for
    test sets with open questions, their exact match and mean token F1; ``accuracy_released``, of the
    questions with options, only where :func:`add_released` scored them. ``samples``, where a method samples
    several answers a question: their number n, their mean accuracy, and pass@n.
    """
    sections: dict[str, dict] = {"accuracy": {}, "accuracy_lenient": {}, "format": {}, "tokens": {}}
    predictions = [p for p in predictions if p.control == PLAIN]
    for name in dict.fromkeys(p.test_set for p in predictions):
        rows = [p for p in predictions if p.test_set == name]

        def share(field: str, rows: list[Prediction] = rows) -> dict:
            return proportion([getattr(p, field) for p in rows], [p.image_group for p in rows]).as_dict()

        sections["accuracy"][name] = share("correct")
        sections["accuracy_lenient"][name] = share("correct_lenient")
        if released := [p for p in rows if p.correct_released is not None]:
            sections.setdefault("accuracy_released", {})[name] = share("correct_released", released)
        sections["format"][name] = {f: share(f) for f in ("well_formed", "answered")}
        sections["tokens"][name] = {
            "mean": sum(p.tokens for p in rows) / len(rows),
            "truncated": sum(p.truncated for p in rows) / len(rows),
        }
        if sampled := [p for p in rows if p.samples]:
            shares = [sum(s["correct"] for s in p.samples) / len(p.samples) for p in sampled]
            groups = [p.image_group for p in sampled]
            sections.setdefault("samples", {})[name] = {
                "n": len(sampled[0].samples),
                "mean_accuracy": proportion(shares, groups).as_dict(),
                "pass_at_n": proportion([passed(p.samples) for p in sampled], groups).as_dict(),
            }
        if texts := [p for p in rows if not p.options]:
            overlaps = [f1_score(p.answer or "", p.gold) for p in texts]
            sections.setdefault("open", {})[name] = {
                "exact_match": share("correct", texts),
                "token_f1": sum(overlaps) / len(overlaps),
                "n": len(texts),
            }
    return sections
