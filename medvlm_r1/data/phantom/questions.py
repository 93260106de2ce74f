"""Questions with exact truth, balanced by construction, and the source that serves them.

Numbered promises that the tests hold:

1. Everything about a question follows from its id: modality, split, seed and number. A source of other
   length, or of fewer question types, serves the same questions under the same ids.
2. Per question type, gold class and gold letter run through a Latin order, so that each pair is equally
   frequent up to rounding; distractors are uniform among the other classes. A prior over option texts,
   letters or wordings is worth nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medvlm_r1.data.phantom.physics import PHYSICS
from medvlm_r1.data.phantom.scene import COUNTS, DISEASES, ORGANS, RADII, SceneSpec, draw_scene
from medvlm_r1.data.phantom.tissues import CT_WINDOWS, MRI_ACQUISITIONS, XRAY_WINDOWS
from medvlm_r1.data.sample import LETTERS, VQASample

ANATOMY, DISEASE, GRADING, ACQUISITION, ATTRIBUTE = QUESTION_TYPES = (
    "Anatomy Identification",
    "Disease Diagnosis",
    "Lesion Grading",
    "Modality Recognition",
    "Other Biological Attributes",
)
OPTIONS = 4  # options a question

_TORSO = {ANATOMY: ORGANS, DISEASE: DISEASES, GRADING: tuple(RADII), ATTRIBUTE: COUNTS}
FINDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "mri": {**_TORSO, ACQUISITION: tuple(MRI_ACQUISITIONS)},
    "ct": {**_TORSO, ACQUISITION: tuple(CT_WINDOWS)},
    "xray": {**_TORSO, ACQUISITION: tuple(XRAY_WINDOWS)},
}
"""Every true or false answer there is, by modality and question type."""

MODALITIES = tuple(PHYSICS)

# Stable keys of the random streams: never reorder, only append.
_MODALITY_KEYS = {"mri": 1, "ct": 2, "xray": 3}
_SPLIT_KEYS = {"train": 1, "validation": 2, "test": 3, "base": 4}

_WORDINGS: dict[str, tuple[str, ...]] = {
    ANATOMY: (
        "Which organ holds the lesion?",
        "In which organ is the lesion located?",
        "Where is the lesion in this image?",
    ),
    DISEASE: (
        "What is the most likely diagnosis?",
        "Which disease does this image show?",
        "What kind of lesion is seen in this image?",
    ),
    GRADING: (
        "How severe is the lesion?",
        "Which grade fits the size of the lesion?",
        "How large is the lesion in this image?",
    ),
    ATTRIBUTE: (
        "How many lesions are there?",
        "How many lesions does this image show?",
        "What is the number of lesions in this image?",
    ),
}
_ACQUISITION_WORDINGS: dict[str, tuple[str, ...]] = {
    "mri": (
        "Which weighting does this image have?",
        "Which sequence was this image acquired with?",
        "What is the contrast of this image?",
    ),
    "ct": (
        "Which window is this image shown in?",
        "Which display window was chosen for this image?",
        "What is the window of this image?",
    ),
    "xray": (
        "Which view does this image show?",
        "From which direction was this image taken?",
        "What is the projection of this image?",
    ),
}


@dataclass(frozen=True)
class PhantomImage:
    """A picture that is rendered when it is asked for.

    Attributes:
        modality: one of ``MODALITIES``.
        acquisition: one of ``FINDINGS[modality]["Modality Recognition"]``.
        spec: the scene; the same spec under another modality is the same patient.
        size: edge in pixels.
        name: stable identity.
    """

    modality: str
    acquisition: str
    spec: SceneSpec
    size: int
    name: str

    def load(self) -> Image.Image:
        """Render the picture: RGB, grey, ``size`` by ``size``; the same bytes every time."""
        key = (*self.spec.key, _MODALITY_KEYS[self.modality], 1)
        rng = np.random.default_rng(np.random.SeedSequence(key))
        grey = PHYSICS[self.modality](draw_scene(self.spec), self.acquisition, rng, self.size)
        return Image.fromarray((np.clip(grey, 0, 1) * 255 + 0.5).astype(np.uint8)).convert("RGB")

    def findings(self) -> dict[str, str]:
        """The true answer by question type; of several lesions in several organs, none for anatomy."""
        found = {
            ANATOMY: self.spec.organ,
            DISEASE: self.spec.disease,
            GRADING: self.spec.grade,
            ACQUISITION: self.acquisition,
            ATTRIBUTE: COUNTS[self.spec.count - 1],
        }
        if self.spec.count > 1:
            del found[ANATOMY]
        return found


class PhantomSource(Sequence[VQASample]):
    """``n`` phantom questions of one modality.

    Args:
        modality: one of ``MODALITIES``.
        n: number of questions.
        split: ``train``, ``validation``, ``test`` or ``base``; their streams are disjoint.
        seed: another seed gives other questions.
        question_types: the types to serve, all of them by default; equally frequent.
        size: edge of the pictures in pixels.

    Raises:
        ValueError: an unknown modality, split or question type, or a negative length or seed.
    """

    def __init__(
        self,
        modality: str,
        n: int,
        split: str = "train",
        seed: int = 0,
        question_types: Sequence[str] | None = None,
        size: int = 112,
    ) -> None:
        wanted = QUESTION_TYPES if question_types is None else tuple(question_types)
        _check("modality", [modality], MODALITIES)
        _check("split", [split], tuple(_SPLIT_KEYS))
        _check("question type", wanted, QUESTION_TYPES)
        if n < 0 or seed < 0 or not wanted:
            raise ValueError(
                f"n={n}, seed={seed}, {len(wanted)} question types: use n, seed >= 0 and a type or more"
            )
        self.modality, self.n, self.split, self.seed, self.size = modality, n, split, seed, size
        self.question_types = tuple(name for name in QUESTION_TYPES if name in wanted)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> VQASample:
        """The question at ``index``; nothing is rendered.

        Raises:
            IndexError: ``index`` is out of range.
        """
        if not -self.n <= index < self.n:
            raise IndexError(f"index {index} is out of range for {self.n} questions")
        block, rank = divmod(index % self.n, len(self.question_types))
        order = [QUESTION_TYPES[i] for i in self._rng(0, block).permutation(len(QUESTION_TYPES))]
        question_type = [name for name in order if name in self.question_types][rank]
        number = block * len(QUESTION_TYPES) + order.index(question_type)
        return self._question(number, question_type, block)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((*self._stream, *key)))

    @property
    def _stream(self) -> tuple[int, ...]:
        return _MODALITY_KEYS[self.modality], _SPLIT_KEYS[self.split], self.seed

    def _question(self, number: int, question_type: str, turn: int) -> VQASample:
        """Question ``number`` of the stream, which is question ``turn`` of its type."""
        rng = self._rng(1, number)
        classes = FINDINGS[self.modality]
        gold, letter = self._gold(question_type, turn)
        others = [name for name in classes[question_type] if name != gold]
        options = [others[i] for i in rng.permutation(len(others))[: OPTIONS - 1]]
        options.insert(letter, gold)
        truth = {name: str(rng.choice(names)) for name, names in classes.items()} | {question_type: gold}
        count = 1
        if question_type == ATTRIBUTE:  # the two smaller grades, for four large lesions would fill the body
            count, truth[GRADING] = COUNTS.index(gold) + 1, tuple(RADII)[int(rng.integers(2))]
        if question_type == DISEASE:  # the smallest lesions show too little shape
            truth[GRADING] = tuple(RADII)[1 + int(rng.integers(3))]
        spec = SceneSpec((*self._stream, 2, number), truth[ANATOMY], truth[DISEASE], truth[GRADING], count)
        label = f"{self.split}-{self.seed}-{number:05d}"
        image = PhantomImage(
            self.modality, truth[ACQUISITION], spec, self.size, f"phantom/{self.modality}/{label}"
        )
        wordings = (
            _ACQUISITION_WORDINGS[self.modality] if question_type == ACQUISITION else _WORDINGS[question_type]
        )
        return VQASample(
            id=f"{self.modality}-{label}",
            images=(image,),
            question=wordings[rng.integers(len(wordings))],
            options=tuple(options),
            answer=LETTERS[letter],
            modality=self.modality,
            question_type=question_type,
            source="phantom",
            image_group=image.name,
        )

    def _gold(self, question_type: str, turn: int) -> tuple[str, int]:
        """Gold class and the place of its letter.

        A cycle has one row per letter; each row holds every class once, and row r gives the class of
        rank b the letter b + r. So classes are balanced after each row, pairs after each cycle.
        """
        names = FINDINGS[self.modality][question_type]
        cycle, place = divmod(turn, OPTIONS * len(names))
        row, column = divmod(place, len(names))
        rng = self._rng(3, QUESTION_TYPES.index(question_type), cycle)
        letters = rng.permutation(OPTIONS)
        rank = int([rng.permutation(len(names)) for _ in range(row + 1)][-1][column])
        return names[rank], int(letters[(rank + row) % OPTIONS])


def _check(what: str, given: Sequence[str], valid: tuple[str, ...]) -> None:
    for name in given:
        if name not in valid:
            raise ValueError(f"unknown phantom {what} {name!r}: use one of {', '.join(valid)}")
