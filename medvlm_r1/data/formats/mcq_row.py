"""Parse one row of the papers' JSON files into a question.

MedVLM-R1 (arXiv 2502.19634) gives ``image`` (list), ``question``, ``options`` (list), ``answer`` (text
of the gold option), ``dataset``, ``subset``, and redundantly ``problem`` and ``solution`` (letter).
Med-R1 (arXiv 2503.13939) gives ``image`` (str), ``problem`` (question with inline options) and
``solution`` (``<answer> C </answer>``). Optional in both: ``qtype``, ``group`` for images of one patient or
study, and ``rationale``, reasoning that leads to the answer. Options may also be an object by letter
(:mod:`~medvlm_r1.data.formats.options`), an image an object with settings
(:mod:`~medvlm_r1.data.images.resolve`). A column that looks like a misspelling of one of these is an error,
since ignoring it would lose data; other columns are ignored.
"""

import re
from difflib import get_close_matches
from typing import Any

from medvlm_r1.data.formats.options import answer_letter, answer_text, letter_in, option_texts
from medvlm_r1.data.formats.values import id_or_none, is_missing, text_or_none
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import LETTERS, BadRowError, ImageHandle, Question, VQASample, keep_images
from medvlm_r1.runs.shorten import clip, shorten

_REQUIRED = ("image", "question", "options", "answer")
_REQUIRED_INLINE = ("image", "problem", "solution")
_OPTIONAL = ("solution", "problem", "dataset", "subset", "qtype", "question_type", "group", "rationale")
MOST_IMAGES = 1000  # entries of a row
_KNOWN = frozenset((*_REQUIRED, *_OPTIONAL))
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
_SOLUTION = re.compile(r"\s*(?:<answer>)?([^<>]*)(?:</answer>)?\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKER = re.compile(r"(?:^|(?<=[\s,]))([A-J])\)")


class UnknownModalityError(BadRowError):
    """A row with an unknown spelling of its modality."""


def read_row(
    row: Any, name: str, source: str, root: ImageRoot, modality: str | None = None, may_be_open: bool = False
) -> VQASample:
    """Parse a row with a gold answer. Does not check that the images exist.

    Args:
        row: the JSON object.
        name: id of the sample.
        source: data set of origin, for rows without ``dataset``.
        root: folder that image paths start from.
        modality: overrides the row's ``subset``.
        may_be_open: a row without options is an open question, of which ``answer`` is the gold text.

    Raises:
        BadRowError: the row is unusable; the message names value and remedy, the caller adds file and row.
    """
    row = _columns(row)
    entries, images = image_handles_of(row.get("image"), root)
    with keep_images(images):
        inline = "problem" in row and "solution" in row and not ("question" in row and "options" in row)
        required = _REQUIRED_INLINE if inline else _REQUIRED
        _check_columns(row, tuple(key for key in required if not (may_be_open and key == "options")))
        question, options = _question_of(row, inline)
        if not options and not may_be_open:
            key = "problem" if inline else "options"
            raise BadRowError(f"{key} is {shorten(row.get(key))}, without the text of an option: give some")
        letter = _letter(row["solution"]) if options and "solution" in row else None
        if not options:
            answer = _checked_text(answer_text(row.get("answer")) or "")
        else:
            answer = _letter_of_text(row["answer"], options) if "answer" in row else letter or ""
        sample = VQASample(
            id=name,
            images=images,
            question=question,
            options=options,
            answer=answer,
            modality=modality or modality_of(row.get("subset")),
            question_type=text_or_none(row.get("qtype", row.get("question_type"))) or "unknown",
            source=text_or_none(row.get("dataset")) or source,
            image_group=id_or_none(row.get("group")) or "+".join(root.identity(entry) for entry in entries),
            rationale=_checked_text(text_or_none(row.get("rationale")) or ""),
        )
        if letter not in (None, sample.answer):
            raise BadRowError(
                f"solution {shorten(row['solution'])} disagrees with answer {shorten(row['answer'])}, which "
                f"is option {sample.answer}: correct one of them"
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
    question, options = _question_of(row, inline)
    return Question(name, image_handles_of(row["image"], root)[1], question, options)


def _columns(row: Any) -> dict[str, Any]:
    """Drop columns without a value: Parquet fills missing ones with null, pandas with NaN."""
    if not isinstance(row, dict):
        raise BadRowError(f"is {shorten(row)}, not an object: give keys such as {', '.join(_REQUIRED)}")
    present = {}
    for key, value in row.items():
        try:
            missing = is_missing(value) if key in _KNOWN else value is None
        except BadRowError as error:
            raise BadRowError(f"column {key!r} {error}") from None
        if not missing or (key in ("question", "problem") and isinstance(value, str)):  # named as empty
            present[key] = value
    return present


def image_handles_of(image: Any, root: ImageRoot) -> tuple[list[Any], tuple[ImageHandle, ...]]:
    """Return the image entries of a row as a list, and their handles; none if ``image`` is ``None``.

    Raises:
        BadRowError: an entry is no path or object with settings, or no image can be there.
    """
    if image is None:
        return [], ()
    entries = [image] if isinstance(image, str | dict) else image
    if not isinstance(entries, list) or not entries:
        raise BadRowError(f"image is {shorten(image)}: give a list of paths")
    if len(entries) > MOST_IMAGES:
        raise BadRowError(f"image has {len(entries):,} entries: give at most {MOST_IMAGES:,} a row")
    return entries, tuple(handle for entry in entries for handle in root.images(entry))


def _question_of(row: dict, inline: bool) -> tuple[str, tuple[str, ...]]:
    """Return the text of the question and its options; none if it is open."""
    if inline:
        question, options = _split_problem(row["problem"])
    else:
        question, options = row["question"], row.get("options")
    options = option_texts(options)
    if not isinstance(question, str):
        raise BadRowError(f"question is {shorten(question)}: give a string")
    return _checked_text(question), tuple(map(_checked_text, options))


def _checked_text(text: str) -> str:
    if "\0" in text:
        raise BadRowError(f"{shorten(text)} holds a NUL character: remove it")
    if not text.isascii() and _SURROGATE.search(text):
        raise BadRowError(
            f"{shorten(text)} holds an unpaired surrogate, which no tokenizer accepts: write it again"
        )
    return text


def _check_columns(row: dict, required: tuple[str, ...], optional: tuple[str, ...] = _OPTIONAL) -> None:
    known = {*required, *optional}
    for key in row.keys() - known - {*_REQUIRED}:
        near = get_close_matches(str(key)[:50].lower(), known, n=1, cutoff=_MISSPELT)
        if near and near[0] not in row:
            raise BadRowError(f"unknown column {shorten(key)}: rename it to {near[0]!r}, or remove it")
    for key in required:
        if key not in row and not (key == "answer" and "solution" in row):
            near = get_close_matches(key, [str(other)[:50] for other in row.keys() - known], n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            has = clip(", ".join(str(key)[:200] for key in row), 300)
            raise BadRowError(f"column {key!r} is missing or empty{hint}: add it; the row has {has}")


def _split_problem(problem: Any) -> tuple[str, list[str]]:
    """Split ``question A)x, B)y``. Options may contain commas, the question a stray ``A)``."""
    marks = list(_MARKER.finditer(problem)) if isinstance(problem, str) else []
    letters = "".join(mark[1] for mark in marks)
    start = letters.rfind("A")
    marks, letters = marks[start:], letters[start:]
    if start < 0 or letters != LETTERS[: len(letters)]:
        raise BadRowError(f"problem {shorten(problem)} has no options A)..., B)... in order: write them so")
    ends = [mark.start() for mark in marks[1:]] + [len(problem)]
    options = [problem[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    question = problem[: marks[0].start()].strip()
    return question, [*(o.removesuffix(",").strip() for o in options[:-1]), options[-1]]


def _letter(solution: Any) -> str:
    match = _SOLUTION.fullmatch(solution) if isinstance(solution, str) and len(solution) < 100 else None
    if match is None or (letter := letter_in(match[1])) is None:
        shown = shorten(solution)
        raise BadRowError(f"solution is {shown}: give one letter, or <answer> and </answer> around it")
    return letter


def _letter_of_text(answer: Any, options: tuple[str, ...]) -> str:
    is_letter = letter_in(answer) in tuple(LETTERS[: len(options)])
    return answer_letter(answer, options, "give an option's text" + ", or a letter as solution" * is_letter)


def modality_of(subset: Any, what: str = "subset", remedy: str = "set data.modality") -> str:
    """Return the short name of a modality, e.g. ``mri``, from any spelling in :data:`MODALITIES`.

    Args:
        what: name of the column, for messages.
        remedy: what else to do about it, for messages.

    Raises:
        UnknownModalityError: the spelling is unknown.
        BadRowError: there is none.
    """
    if (text := text_or_none(subset)) is None:
        raise BadRowError(f"has no {what}, the modality: add one, or {remedy} for all files")
    if (modality := _BY_SPELLING.get(_plain(text))) is not None:
        return modality
    known = ", ".join(spellings[0] for spellings in MODALITIES.values())
    raise UnknownModalityError(
        f"{what} {shorten(subset)} is no known modality: use one of {known}; or {remedy}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_BY_SPELLING = {_plain(s): modality for modality, known in MODALITIES.items() for s in (modality, *known)}
