"""MedXpertQA, multimodal part (arXiv 2501.18362): examination questions with images and patient records.

``MM/{dev,test}.jsonl`` and ``images.zip`` (or ``images/``); a row has ``question``, ``options`` (letter to
text), ``label`` (letter), ``images`` (names), ``question_type`` and others. Where the question repeats its
options behind ``Answer Choices:``, that tail is cut off, since the prompt lists them.
"""

from typing import Any

from medvlm_r1.data.formats.question_file import ParsedRows, parse_rows
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.formats.values import text_or_none
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample
from medvlm_r1.data.sources.fields import lettered_options, text_of
from medvlm_r1.data.sources.locate import need_files
from medvlm_r1.data.sources.published_set import PublishedSet
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.shorten import shorten

HUB_ID = "TsinghuaC3I/MedXpertQA"


def medxpertqa_mm(**shared: Any) -> Questions:
    """Load MedXpertQA MM, with the test set ``medxpertqa_mm``.

    Training and validation questions come from the small ``dev`` part.

    Args:
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    settings = PublishedSet(**shared)
    folder = settings.find(HUB_ID, ["MM/dev.jsonl", "MM/test.jsonl", "images.zip"])
    images = ImageStore(folder / "images", folder / "images.zip")

    def parse(row: Any, id: str) -> VQASample:
        question, names = text_of(row, "question"), row.get("images")
        options, letters = _options(row.get("options"))
        if (label := text_of(row, "label")) not in letters:
            raise BadRowError(f"label is {label!r}: give the letter of an option, {', '.join(letters)}")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise BadRowError(f"images is {shorten(names)}: give a list of file names")
        return VQASample(
            id=id,
            images=tuple(images.handle(name) for name in names),
            question=question.partition("\nAnswer Choices:")[0].strip(),
            options=options,
            answer=letters[label],
            modality="unknown",
            question_type=text_or_none(row.get("question_type")) or "unknown",
            source="medxpertqa_mm",
            image_group="+".join(names),
        )

    def read(part: str) -> ParsedRows:
        path = need_files(folder, f"MM/{part}.jsonl", f"{part}.jsonl")[0]
        return parse_rows(enumerate(read_json(path)), path, parse, settings.rows, f"medxpertqa_mm-{part}")

    dev, test = read("dev"), read("test")
    return settings.assemble(
        {"train": dev, "medxpertqa_mm": test}, dev.samples, {"medxpertqa_mm": test.samples}
    )


def _options(options: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    if not isinstance(options, dict) or "".join(sorted(options)) != LETTERS[: len(options)]:
        raise BadRowError(f"options is {shorten(options)}: give an object with keys A, B, ...")
    return lettered_options(dict(sorted(options.items())))
