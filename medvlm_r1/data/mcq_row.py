"""One row of the papers' JSON files, read into a question.

MedVLM-R1 (arXiv 2502.19634) gives ``image`` (list), ``question``, ``options`` (list), ``answer`` (text
of the gold option), ``dataset``, ``subset``, and redundantly ``problem`` and ``solution`` (letter).
Med-R1 (arXiv 2503.13939) gives ``image`` (str), ``problem`` (question with inline options) and
``solution`` (``<answer> C </answer>``). Optional in both: ``qtype``, and ``group`` for pictures that
belong together. A column that looks like a misspelling of one of these is an error, since ignoring it
would lose data; any other column is ignored.
"""

import re
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medvlm_r1.data.sample import LETTERS, BadRowError, ImageFile, VQASample

_REQUIRED = ("image", "question", "options", "answer")
_REQUIRED_INLINE = ("image", "problem", "solution")
_OPTIONAL = ("solution", "problem", "dataset", "subset", "qtype", "question_type", "group")
_MISSPELT = 0.8  # difflib ratio: "anwser" is 0.83 from "answer", "question_id" 0.75 from "question_type"

# OmniMedVQA's names of its modalities, as both papers' files spell them, beside the plain ones.
_MODALITIES = {
    "mri": ("MR (Mag-netic Resonance Imaging)", "MR", "MRI", "Magnetic Resonance Imaging"),
    "ct": ("CT(Computed Tomography)", "CT", "Computed Tomography"),
    "xray": ("X-Ray",),
    "ultrasound": ("Ultrasound",),
    "dermoscopy": ("Dermoscopy",),
    "fundus": ("Fundus Photography", "Fundus"),
    "oct": ("OCT (Optical Coherence Tomography)", "OCT", "Optical Coherence Tomography"),
    "microscopy": ("Microscopy Images", "Microscopy"),
    "endoscopy": ("Endoscopy",),
    "colposcopy": ("Colposcopy",),
    "photography": ("Digital Photography",),
    "infrared": ("Infrared Reflectance Imaging",),
}
_SOLUTION = re.compile(r"(?:<answer>)?\s*([A-J])\s*(?:</answer>)?")
_MARKER = re.compile(r"(?:^|(?<=[\s,]))([A-J])\)")


def read_row(row: Any, name: str, source: str, folder: Path, modality: str | None = None) -> VQASample:
    """One question.

    Args:
        row: the JSON object.
        name: the id that the sample gets.
        source: data set of origin, where the row has no ``dataset``.
        folder: where image paths start from. Whether the images exist is not asked here.
        modality: taken instead of the row's ``subset`` where given.

    Raises:
        BadRowError: the row is unusable; the message names value and remedy, the caller adds the place.
    """
    if not isinstance(row, dict):
        raise BadRowError(f"is {row!r:.60}, not an object: give keys such as {', '.join(_REQUIRED)}")
    row = {key: value for key, value in row.items() if value is not None}  # parquet fills gaps with null
    inline = "problem" in row and "solution" in row and not ("question" in row and "options" in row)
    _check_columns(row, _REQUIRED_INLINE if inline else _REQUIRED)
    question, options = _split_problem(row["problem"]) if inline else (row["question"], row["options"])
    paths = [row["image"]] if isinstance(row["image"], str) else row["image"]
    for key, value in (("image", paths), ("options", options)):
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
            raise BadRowError(f"{key} is {value!r}: give a list of non-empty strings")
    if not isinstance(question, str):
        raise BadRowError(f"question is {question!r}: give a string")
    letter = _letter(row["solution"]) if "solution" in row else None
    sample = VQASample(
        id=name,
        images=tuple(ImageFile(folder / path) for path in paths),
        question=question,
        options=tuple(options),
        answer=_letter_of_text(row["answer"], options) if "answer" in row else letter,
        modality=modality or modality_of(row.get("subset")),
        question_type=str(row.get("qtype", row.get("question_type", "unknown"))),
        source=str(row.get("dataset", source)),
        image_group=str(row.get("group", "+".join(_identity(folder / path) for path in paths))),
    )
    if letter not in (None, sample.answer):
        raise BadRowError(
            f"solution {row['solution']!r} disagrees with answer {row['answer']!r}, which is option "
            f"{sample.answer}: correct one of them"
        )
    return sample


def _identity(path: Path) -> str:
    """The file's name with a mark of its place: folders may each have an ``images/1.png`` of their own."""
    return f"{path.name}-{zlib.crc32(str(path.resolve()).encode()):08x}"


def _check_columns(row: dict, required: tuple[str, ...]) -> None:
    known = {*required, *_OPTIONAL}
    for key in row.keys() - known - {*_REQUIRED}:
        near = get_close_matches(key.lower(), known, n=1, cutoff=_MISSPELT)
        if near and near[0] not in row:
            raise BadRowError(f"unknown column {key!r}: rename it to {near[0]!r}, or remove it")
    for key in required:
        if key not in row and not (key == "answer" and "solution" in row):
            near = get_close_matches(key, row.keys() - known, n=1, cutoff=0.5)
            hint = f" (the nearest that it has is {near[0]!r})" if near else ""
            raise BadRowError(f"column {key!r} is missing{hint}: add it; the row has {', '.join(row)}")


def _split_problem(problem: Any) -> tuple[str, list[str]]:
    """Undo ``question A)x, B)y``. Options may hold commas; the question may hold a stray ``A)``."""
    marks = list(_MARKER.finditer(problem)) if isinstance(problem, str) else []
    letters = "".join(mark[1] for mark in marks)
    start = letters.rfind("A")
    marks, letters = marks[start:], letters[start:]
    if start < 0 or letters != LETTERS[: len(letters)]:
        raise BadRowError(f"problem {problem!r} has no options A)..., B)... in order: write them so")
    ends = [mark.start() for mark in marks[1:]] + [len(problem)]
    options = [problem[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return problem[: marks[0].start()].strip(), [
        *(o.removesuffix(",").strip() for o in options[:-1]),
        options[-1],
    ]


def _letter(solution: Any) -> str:
    match = _SOLUTION.fullmatch(solution.strip()) if isinstance(solution, str) else None
    if match is None:
        raise BadRowError(f"solution is {solution!r}: give one letter, or <answer> and </answer> around it")
    return match[1]


def _letter_of_text(answer: Any, options: list[str]) -> str:
    if answer not in options:
        near = get_close_matches(str(answer), options, n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise BadRowError(
            f"answer {answer!r} is not among the options {options}{hint}: give an option's text"
        )
    return LETTERS[options.index(answer) : options.index(answer) + 1]


def modality_of(subset: Any) -> str:
    """The plain name of a modality that OmniMedVQA, the papers or this package spell in some way.

    Raises:
        BadRowError: it is none of them.
    """
    if subset is None:
        raise BadRowError("has no subset to tell the modality: add one, or set data.modality for all files")
    for modality, spellings in _MODALITIES.items():
        if _plain(subset) in (modality, *map(_plain, spellings)):
            return modality
    known = ", ".join(spellings[0] for spellings in _MODALITIES.values())
    raise BadRowError(f"subset {subset!r} is no known modality: use one of {known}; or set data.modality")


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z]", "", str(name).lower())
