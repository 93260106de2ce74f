"""Questions with exact answers, balanced by construction, and the data source that generates them.

Guarantees, each held by a test:

1. A question follows from its id: modality, split, seed and number. A source with another length or with
   fewer question types generates the same questions under the same ids.
2. Per question type, gold class and gold letter follow a Latin square, so that all pairs are equally
   frequent up to rounding; distractors are uniform among the other classes. A prior over option texts,
   letters or wordings scores at chance.
3. With ``shortcut`` = s, the option text reveals the gold option of a share s of the questions: their
   distractors are the first three classes of the type, and gold is one of the others, so one class where
   there are four. The picture still shows the gold class, and the letters are those of s = 0. A prior over
   option texts, fitted on such questions, scores about s + (1 - s) / 4 on others of them, and at chance on
   questions with s = 0. A larger s changes all questions that a smaller one changes, and more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medvlm_r1.data.sample import LETTERS, VQASample
from medvlm_r1.phantom.modalities import MODALITIES
from medvlm_r1.phantom.spec import COUNTS, GRADES, SceneSpec
from medvlm_r1.phantom.wordings import WORDINGS

ANATOMY, DISEASE, GRADING, ACQUISITION, ATTRIBUTE = QUESTION_TYPES = (
    "Anatomy Identification",
    "Disease Diagnosis",
    "Lesion Grading",
    "Modality Recognition",
    "Other Biological Attributes",
)
OPTIONS = 4  # options per question

FINDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    # Findings are drawn in this order: never change it.
    name: {
        ANATOMY: modality.anatomy.sites,
        DISEASE: modality.anatomy.diseases,
        GRADING: GRADES,
        ATTRIBUTE: modality.anatomy.attributes,
        ACQUISITION: modality.acquisitions,
    }
    for name, modality in MODALITIES.items()
}
"""All classes, correct or not, by modality and question type."""

# Stable keys of the random streams: never reorder, only append.
_SPLIT_KEYS = {"train": 1, "validation": 2, "test": 3, "base": 4}


@dataclass(frozen=True)
class PhantomImage:
    """Handle of an image that :meth:`load` renders."""

    modality: str
    acquisition: str
    spec: SceneSpec  # with another modality: another image of the same patient
    size: int  # edge in pixels
    name: str  # stable identity

    def load(self) -> Image.Image:
        """Render the image: RGB, ``size`` by ``size``, deterministic."""
        modality = MODALITIES[self.modality]
        rng = np.random.default_rng((*self.spec.key, modality.key, 1))
        picture = modality.render(modality.anatomy.draw(self.spec), self.acquisition, rng, self.size)
        return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)).convert("RGB")

    def findings(self) -> dict[str, str]:
        """Return the correct class by question type; none for anatomy if there are several lesions."""
        classes = {
            ANATOMY: self.spec.site,
            DISEASE: self.spec.disease,
            GRADING: self.spec.grade,
            ACQUISITION: self.acquisition,
            ATTRIBUTE: self.spec.attribute,
        }
        if self.spec.count > 1:
            del classes[ANATOMY]
        return classes


class PhantomSource(Sequence[VQASample]):
    """``n`` phantom questions of one modality, or of several in rotation.

    Args:
        modality: one of ``MODALITIES``, or several.
        split: ``train``, ``validation``, ``test`` or ``base``; their streams are disjoint.
        seed: selects the stream of questions.
        question_types: question types, all by default; equally frequent.
        size: edge of the pictures in pixels.
        shortcut: probability that the option text reveals a question's gold option (note 3 of the module);
            the ids of these questions end in ``-shortcut``.

    Raises:
        ValueError: an unknown modality, split or question type, a negative length or seed, or a ``shortcut``
            outside [0, 1].
    """

    def __init__(
        self,
        modality: str | Sequence[str],
        n: int,
        split: str = "train",
        seed: int = 0,
        question_types: Sequence[str] | None = None,
        size: int = 112,
        shortcut: float = 0.0,
    ) -> None:
        named = (modality,) if isinstance(modality, str) else tuple(modality)
        wanted = QUESTION_TYPES if question_types is None else tuple(question_types)
        _check("modality", named, tuple(MODALITIES))
        _check("split", [split], tuple(_SPLIT_KEYS))
        _check("question type", wanted, QUESTION_TYPES)
        if n < 0 or seed < 0 or not wanted or not named:
            raise ValueError(
                f"n={n}, seed={seed}, {len(named)} modalities, {len(wanted)} question types: "
                "use n, seed >= 0, and a modality and a type or more"
            )
        if not 0 <= shortcut <= 1:
            raise ValueError(f"shortcut={shortcut}: use a probability from 0 to 1")
        self.n, self.split, self.seed, self.size, self.shortcut = n, split, seed, size, shortcut
        self.modalities = tuple(name for name in MODALITIES if name in named)
        self.question_types = tuple(name for name in QUESTION_TYPES if name in wanted)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> VQASample:
        """Return the question at ``index`` without rendering its image."""
        if not -self.n <= index < self.n:
            raise IndexError(f"index {index} is out of range for {self.n} questions")
        row, column = divmod(index % self.n, len(self.modalities))
        stream = _Stream(self.modalities[column], self.split, self.seed, self.size, self.shortcut)
        return stream.at(row, self.question_types)


@dataclass(frozen=True)
class _Stream:
    """All questions of one modality, split and seed."""

    modality: str
    split: str
    seed: int
    size: int
    shortcut: float

    def at(self, index: int, question_types: tuple[str, ...]) -> VQASample:
        """Return question ``index`` among those of these types."""
        block, rank = divmod(index, len(question_types))
        order = [QUESTION_TYPES[i] for i in self._rng(0, block).permutation(len(QUESTION_TYPES))]
        question_type = [name for name in order if name in question_types][rank]
        return self._question(block * len(QUESTION_TYPES) + order.index(question_type), question_type, block)

    @property
    def _key(self) -> tuple[int, ...]:
        return MODALITIES[self.modality].key, _SPLIT_KEYS[self.split], self.seed

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((*self._key, *key))

    def _question(self, number: int, question_type: str, turn: int) -> VQASample:
        """Return question ``number`` of the stream, which is question ``turn`` of its type."""
        rng = self._rng(1, number)
        classes = FINDINGS[self.modality]
        names = classes[question_type]
        gold, letter = self._gold(question_type, turn)
        others = [name for name in names if name != gold]
        label = f"{self.split}-{self.seed}-{number:05d}"
        choice = self._rng(4, number)
        if choice.random() < self.shortcut:
            others, gold = list(names[: OPTIONS - 1]), names[choice.integers(OPTIONS - 1, len(names))]
            label += "-shortcut"
        options = [others[i] for i in rng.permutation(len(others))[: OPTIONS - 1]]
        options.insert(letter, gold)
        truth = {name: str(rng.choice(names)) for name, names in classes.items()} | {question_type: gold}
        if classes[ATTRIBUTE] == COUNTS:
            if question_type != ATTRIBUTE:
                truth[ATTRIBUTE] = COUNTS[0]
            else:  # the two smaller grades: four large lesions would fill the image
                truth[GRADING] = GRADES[int(rng.integers(2))]
        if question_type == DISEASE:  # the smallest lesions have no visible shape
            truth[GRADING] = GRADES[1 + int(rng.integers(3))]
        scene = (truth[ANATOMY], truth[DISEASE], truth[GRADING], truth[ATTRIBUTE])
        image = PhantomImage(
            self.modality,
            truth[ACQUISITION],
            SceneSpec((*self._key, 2, number), *scene),
            self.size,
            f"phantom/{self.modality}/{label}",
        )
        anatomy = MODALITIES[self.modality].anatomy
        subject = {ANATOMY: anatomy.name, ATTRIBUTE: anatomy.attribute, ACQUISITION: self.modality}
        texts = WORDINGS[subject.get(question_type, question_type)]
        return VQASample(
            id=f"{self.modality}-{label}",
            images=(image,),
            question=texts[rng.integers(len(texts))],
            options=tuple(options),
            answer=LETTERS[letter],
            modality=self.modality,
            question_type=question_type,
            source="phantom",
            image_group=image.name,
            rationale=f"The image shows {gold}.",
        )

    def _gold(self, question_type: str, turn: int) -> tuple[str, int]:
        """Return the gold class and the index of its letter.

        A cycle has one row per letter; each row contains every class once, and row r gives the class of
        rank b the letter b + r. So classes are balanced after each row, (class, letter) after each cycle.
        """
        names = FINDINGS[self.modality][question_type]
        cycle, cell = divmod(turn, OPTIONS * len(names))
        row, column = divmod(cell, len(names))
        rng = self._rng(3, QUESTION_TYPES.index(question_type), cycle)
        letters = rng.permutation(OPTIONS)
        rank = int([rng.permutation(len(names)) for _ in range(row + 1)][-1][column])
        return names[rank], int(letters[(rank + row) % OPTIONS])


def _check(kind: str, names: Sequence[str], valid: tuple[str, ...]) -> None:
    for name in names:
        if name not in valid:
            raise ValueError(f"unknown phantom {kind} {name!r}: use one of {', '.join(valid)}")
