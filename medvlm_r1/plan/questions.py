"""Numbers of questions, steps and answers of a run, from its configuration."""

from dataclasses import dataclass
from pydoc import locate
from typing import Any

from medvlm_r1.algorithms.steps import run_length
from medvlm_r1.data.sources.medvlm_r1 import medvlm_r1 as published_data
from medvlm_r1.policy.loading.load import Recipe

# The papers' test file: 300 questions each on MRI, CT and X-ray.
_PUBLISHED_TEST = 900


@dataclass(frozen=True)
class Questions:
    """Numbers of questions; ``None`` if the configuration lacks one.

    Attributes:
        answers: greedy answers to each test question, over all controls.
        steps: of the run, see :mod:`~medvlm_r1.algorithms.steps`.
        validations: times that the validation questions are answered.
    """

    train: int | None
    validation: int | None
    test: int | None
    answers: int
    steps: int | None
    validations: int

    @property
    def evaluations(self) -> int | None:
        """Greedy answers in the run."""
        if self.test is None or self.validation is None or self.steps is None:
            return None
        return self.answers * self.test + self.validations * self.validation


def count_questions(cfg: dict[str, Any], recipe: Recipe, trains: bool, answers: int) -> Questions:
    """Read the numbers of a resolved configuration, with ``answers`` to each test question."""
    data, trainer = cfg["data"], cfg["trainer"]

    def size(part: str) -> int | None:
        node = data.get(part)
        return node["n"] if isinstance(node, dict) and "n" in node else data.get(f"n_{part}")

    tests, test = data.get("test"), None
    if isinstance(tests, dict) and all(isinstance(node, dict) and "n" in node for node in tests.values()):
        test = sum(node["n"] for node in tests.values())
    elif locate(data["_target_"]) is published_data:
        test = _PUBLISHED_TEST
    train, validation = size("train"), size("validation")
    if not trains:
        return Questions(0, validation, test, answers, steps=0, validations=1)
    if data.get("n_train_per"):  # a number per class; the configuration lacks the number of classes
        train = None
    if train is None:
        return Questions(None, validation, test, answers, steps=None, validations=0)
    length = run_length(cfg, train, recipe.prompts_per_step)
    interval = trainer.get("val_check_interval") or 1.0
    if isinstance(interval, float):  # a share of an epoch
        interval = int(length.per_epoch * interval)
    validations = length.total // max(1, interval) + 2  # and one before and one after training
    return Questions(train, validation, test, answers, length.total, validations)
