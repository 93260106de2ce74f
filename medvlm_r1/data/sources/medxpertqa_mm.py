"""MedXpertQA, multimodal part (arXiv 2501.18362): examination questions with images and patient records.

``MM/{dev,test}.jsonl`` and ``images.zip`` (or ``images/``); a row has ``question``, ``options`` (letter to
text), ``label`` (letter), ``images`` (names), ``question_type`` and others. Where the question repeats its
options behind ``Answer Choices:``, that tail is cut off, since the prompt lists them.
"""

from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import PictureFolder
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample
from medvlm_r1.data.sources.assemble import Table, assemble, text_of
from medvlm_r1.data.sources.locate import find_set, need_files
from medvlm_r1.data.splits import Questions

HUB_ID = "TsinghuaC3I/MedXpertQA"


def medxpertqa_mm(
    root: str | None = None,
    revision: str = "main",
    n_train: int | None = None,
    n_validation: int = 1,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """MedXpertQA MM, made to be tested on: one test set ``medxpertqa_mm``.

    Training and validation questions come from the few of ``dev``.

    Args:
        root: a local copy; ``None`` asks the hub's cache, then the hub.
        revision: commit of the hub's set; used without ``root`` only.
        n_train, n_validation, n_test: sizes; ``None`` takes all.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    folder = find_set(HUB_ID, root, revision, ["MM/dev.jsonl", "MM/test.jsonl", "images.zip"])
    images = PictureFolder.among(folder / "images", folder / "images.zip")
    dev, test = (
        _read(need_files(folder, f"MM/{part}.jsonl", f"{part}.jsonl")[0], part, images, on_bad_row)
        for part in ("dev", "test")
    )
    return assemble(
        [dev, test],
        dev.samples,
        {"medxpertqa_mm": test.samples},
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def _read(path: Path, part: str, images: PictureFolder, on_bad_row: OnBadRow) -> Table:
    def sample(number: int, row: Any) -> VQASample:
        question, names = text_of(row, "question"), row.get("images")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise BadRowError(f"images is {names!r}: give a list of file names")
        return VQASample(
            id=f"medxpertqa_mm-{part}-{number}",
            images=tuple(images.handle(name) for name in names),
            question=question.partition("\nAnswer Choices:")[0].strip(),
            options=_options(row.get("options")),
            answer=text_of(row, "label"),
            modality="unknown",
            question_type=str(row.get("question_type", "unknown")),
            source="medxpertqa_mm",
            image_group="+".join(names),
        )

    table = Table()
    table.read(path, enumerate(read_json(path)), sample, on_bad_row)
    return table


def _options(options: Any) -> tuple[str, ...]:
    if not isinstance(options, dict) or "".join(sorted(options)) != LETTERS[: len(options)]:
        raise BadRowError(f"options are {options!r}: give an object with keys A, B, ...")
    return tuple(str(options[letter]).strip() for letter in sorted(options))
