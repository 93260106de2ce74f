"""Turn the label of an image into a multiple-choice question.

(seed, file, slice) determines every random choice for a question: the wrong labels that it offers, their
order and the position of the gold label, each position being equally likely. So other images, and their
order, change no question.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from medvlm_r1.data.formats.columns import nearest_name
from medvlm_r1.data.formats.values import id_or_none, text_or_none
from medvlm_r1.data.sample import LETTERS, near_duplicates
from medvlm_r1.runs.shorten import clip, shorten


@dataclass(frozen=True)
class QuestionTemplate:
    """How an image's label becomes a question.

    Attributes:
        question: text of the question; ``{modality}`` is replaced by the modality's name.
        question_type: question type of every question.
        n_options: number of options, the gold one included. Default: all labels.
        names: option text by label, where it differs from the label.
        seed: seed of the wrong options and all positions.

    Raises:
        ValueError: the question has another placeholder, or ``n_options`` is out of range.
    """

    question: str = "Which disease is seen in this {modality} image?"
    question_type: str = "Disease Diagnosis"
    n_options: int | None = None
    names: Mapping[Any, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            unknown = {name for _, name, _, _ in Formatter().parse(self.question) if name is not None}
        except ValueError as error:
            raise ValueError(f"data.template.question {self.question!r}: {error}") from None
        if unknown - {"modality"}:
            raise ValueError(
                f"data.template.question {self.question!r} has the placeholders {sorted(unknown)}: only "
                "{modality} can be filled in"
            )
        texts = {id_or_none(label): text_or_none(name) for label, name in self.names.items()}
        if None in texts or None in texts.values() or len(texts) < len(self.names):
            raise ValueError(f"data.template.names is {shorten(dict(self.names))}: give each label one name")
        object.__setattr__(self, "names", texts)  # YAML reads 0 and 1 as numbers
        if self.n_options is not None and not 2 <= self.n_options <= len(LETTERS):
            raise ValueError(
                f"data.template.n_options is {self.n_options}: a question needs 2 to {len(LETTERS)}"
            )

    def check(self, labels: Sequence[str]) -> None:
        """Check that questions can be made from these labels of a folder.

        Raises:
            ValueError: there are too few or too many labels, two have the same name, or a name has no label.
        """
        shown = clip(", ".join(labels), 500)
        if same := near_duplicates(labels):
            raise ValueError(
                f"the labels {shorten(same[0])} and {shorten(same[1])} differ only in case or spaces: write "
                "them in one way"
            )
        for label in self.names:
            if label not in labels:
                near = nearest_name(label, labels)
                hint = f"did you mean {near!r}? " if near else ""
                raise ValueError(
                    f"data.template.names: there is no label {label!r}: {hint}The labels are {shown}"
                )
        wanted = len(labels) if self.n_options is None else self.n_options
        if len(labels) < max(2, wanted):
            raise ValueError(f"{wanted} options need as many labels, but there are only {shown}")
        if wanted > len(LETTERS):
            raise ValueError(
                f"{len(labels)} labels are more than the {len(LETTERS)} options that a question can have: "
                "set data.template.n_options"
            )
        if near_duplicates([self.names.get(label, label) for label in labels]):
            raise ValueError("data.template.names gives two labels the same name: make each name different")

    def options(self, file: str, gold: str, labels: Sequence[str]) -> tuple[list[str], str]:
        """Return the options of one image's question, and the letter of the gold one."""
        draw = random.Random(f"{self.seed} {file}")
        n = len(labels) if self.n_options is None else self.n_options
        # The position is drawn first, independently of the label: no label is more frequent at one letter.
        position = draw.randrange(n)
        others = draw.sample([label for label in labels if label != gold], n - 1)
        shown = [*others[:position], gold, *others[position:]]
        return [self.names.get(label, label) for label in shown], LETTERS[position]
