"""Parse one row of the papers' JSON files into a question.

MedVLM-R1 (arXiv 2502.19634) gives ``image`` (list), ``question``, ``options`` (list), ``answer`` (text
of the gold option), ``dataset``, ``subset``, and redundantly ``problem`` and ``solution`` (letter).
Med-R1 (arXiv 2503.13939) gives ``image`` (str), ``problem`` (question with inline options) and
``solution`` (``<answer> C </answer>``). Optional in both: ``qtype``, and ``group`` for images of one patient
or study. An image may also be an object with settings (:mod:`~medvlm_r1.data.images.resolve`). A column that
looks like a misspelling of one of these is an error, since ignoring it would lose data; other columns are
ignored.
"""

import re
from difflib import get_close_matches
from typing import Any

from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import LETTERS, BadRowError, ImageHandle, Question, VQASample, keep_images

_REQUIRED = ("image", "question", "options", "answer")
_REQUIRED_INLINE = ("image", "problem", "solution")
_OPTIONAL = ("solution", "problem", "dataset", "subset", "qtype", "question_type", "group")
_MISSPELT = 0.8  # difflib ratio: "anwser" is 0.83 from "answer", "question_id" 0.75 from "question_type"

# Short names of the modalities, and OmniMedVQA's spellings, which both papers' files use.
MODALITIES = {
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
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKER = re.compile(r"(?:^|(?<=[\s,]))([A-J])\)")


def read_row(row: Any, name: str, source: str, root: ImageRoot, modality: str | None = None) -> VQASample:
    """Parse a row with a gold answer. Does not check that the images exist.

    Args:
        row: the JSON object.
        name: id of the sample.
        source: data set of origin, for rows without ``dataset``.
        root: folder that image paths start from.
        modality: overrides the row's ``subset``.

    Raises:
        BadRowError: the row is unusable; the message names value and remedy, the caller adds file and row.
    """
    row = _columns(row)
    entries, images = _images(row, root)
    with keep_images(images):
        inline = "problem" in row and "solution" in row and not ("question" in row and "options" in row)
        _check_columns(row, _REQUIRED_INLINE if inline else _REQUIRED)
        question, options = _split_problem(row["problem"]) if inline else (row["question"], row["options"])
        _check_texts(question, options)
        letter = _letter(row["solution"]) if "solution" in row else None
        sample = VQASample(
            id=name,
            images=images,
            question=question,
            options=tuple(options),
            answer=_letter_of_text(row["answer"], options) if "answer" in row else letter,
            modality=modality or modality_of(row.get("subset")),
            question_type=str(row.get("qtype", row.get("question_type", "unknown"))),
            source=str(row.get("dataset", source)),
            image_group=str(row.get("group", "+".join(root.identity(entry) for entry in entries))),
        )
        if letter not in (None, sample.answer):
            raise BadRowError(
                f"solution {row['solution']!r} disagrees with answer {row['answer']!r}, which is option "
                f"{sample.answer}: correct one of them"
            )
    return sample


def read_question(row: Any, name: str, root: ImageRoot) -> Question:
    """Parse a row that may lack the answer, the modality and, if the question is open, the options.

    Otherwise as :func:`read_row`; a row with an answer becomes a :class:`VQASample`.
    """
    row = _columns(row)
    if "answer" in row or "solution" in row:
        return read_row(row, name, source="", root=root, modality="unknown")
    inline = "problem" in row and "question" not in row
    required = ("image", "problem" if inline else "question")
    _check_columns(row, required, (*_OPTIONAL, "question", "options", "answer"))
    question, options = _split_problem(row["problem"]) if inline else (row["question"], row.get("options"))
    _check_texts(question, options)
    return Question(name, _images(row, root)[1], question, tuple(options or ()))


def _columns(row: Any) -> dict[str, Any]:
    """Drop columns without a value; Parquet fills missing ones with null."""
    if not isinstance(row, dict):
        raise BadRowError(f"is {row!r:.60}, not an object: give keys such as {', '.join(_REQUIRED)}")
    return {key: value for key, value in row.items() if value is not None}


def _images(row: dict, root: ImageRoot) -> tuple[list[Any], tuple[ImageHandle, ...]]:
    """Return the entries of a row's images as a list, and their handles; none if the column is missing."""
    if "image" not in row:
        return [], ()
    entries = [row["image"]] if isinstance(row["image"], str | dict) else row["image"]
    if not isinstance(entries, list) or not entries:
        raise BadRowError(f"image is {entries!r}: give a list of paths")
    return entries, tuple(handle for entry in entries for handle in root.images(entry))


def _check_texts(question: Any, options: Any) -> None:
    """Check the types of question and options (``None`` if open)."""
    if options is not None and (
        not isinstance(options, list) or not options or not all(isinstance(v, str) and v for v in options)
    ):
        raise BadRowError(f"options is {options!r}: give a list of non-empty strings")
    if not isinstance(question, str):
        raise BadRowError(f"question is {question!r}: give a string")
    for text in (question, *(options or ())):
        if not text.isascii() and _SURROGATE.search(text):
            raise BadRowError(
                f"{text!r:.80} holds an unpaired surrogate, which no tokenizer accepts: write it again"
            )


def _check_columns(row: dict, required: tuple[str, ...], optional: tuple[str, ...] = _OPTIONAL) -> None:
    known = {*required, *optional}
    for key in row.keys() - known - {*_REQUIRED}:
        near = get_close_matches(key.lower(), known, n=1, cutoff=_MISSPELT)
        if near and near[0] not in row:
            raise BadRowError(f"unknown column {key!r}: rename it to {near[0]!r}, or remove it")
    for key in required:
        if key not in row and not (key == "answer" and "solution" in row):
            near = get_close_matches(key, row.keys() - known, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise BadRowError(f"column {key!r} is missing{hint}: add it; the row has {', '.join(row)}")


def _split_problem(problem: Any) -> tuple[str, list[str]]:
    """Split ``question A)x, B)y``. Options may contain commas, the question a stray ``A)``."""
    marks = list(_MARKER.finditer(problem)) if isinstance(problem, str) else []
    letters = "".join(mark[1] for mark in marks)
    start = letters.rfind("A")
    marks, letters = marks[start:], letters[start:]
    if start < 0 or letters != LETTERS[: len(letters)]:
        raise BadRowError(f"problem {problem!r} has no options A)..., B)... in order: write them so")
    ends = [mark.start() for mark in marks[1:]] + [len(problem)]
    options = [problem[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    question = problem[: marks[0].start()].strip()
    return question, [*(o.removesuffix(",").strip() for o in options[:-1]), options[-1]]


def _letter(solution: Any) -> str:
    match = _SOLUTION.fullmatch(solution.strip()) if isinstance(solution, str) else None
    if match is None:
        raise BadRowError(f"solution is {solution!r}: give one letter, or <answer> and </answer> around it")
    return match[1]


def _letter_of_text(answer: Any, options: list[str]) -> str:
    if answer not in options:
        near = get_close_matches(str(answer), options, n=1)
        hint = f"; the closest is {near[0]!r}" if near else ""
        raise BadRowError(
            f"answer {answer!r} is not among the options {options}{hint}: give an option's text"
        )
    return LETTERS[options.index(answer) : options.index(answer) + 1]


def modality_of(subset: Any) -> str:
    """Return the short name of a modality, e.g. ``mri``, from any spelling in :data:`MODALITIES`.

    Raises:
        BadRowError: the spelling is unknown.
    """
    if subset is None:
        raise BadRowError("has no subset, the modality: add one, or set data.modality for all files")
    if (modality := _BY_SPELLING.get(_plain(subset))) is not None:
        return modality
    known = ", ".join(spellings[0] for spellings in MODALITIES.values())
    raise BadRowError(f"subset {subset!r} is no known modality: use one of {known}; or set data.modality")


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z]", "", str(name).lower())


_BY_SPELLING = {_plain(s): modality for modality, known in MODALITIES.items() for s in (modality, *known)}
