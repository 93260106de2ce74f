"""SLAKE (arXiv 2102.09542) in English: radiology questions with modality, organ and content type.

``{train,validation,test}.json`` and ``imgs.zip`` (or ``imgs/``); a row has ``img_name``, ``question``,
``answer``, ``q_lang``, ``modality``, ``answer_type`` (OPEN or CLOSED) and ``content_type``.
"""

from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.formats.mcq_row import modality_of
from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import PictureFolder
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.sources.assemble import (
    YES_NO,
    Table,
    assemble,
    kinds_of,
    tests_of,
    text_of,
    without_images_of,
    yes_no,
)
from medvlm_r1.data.sources.locate import find_set, need_files
from medvlm_r1.data.splits import Questions

HUB_ID = "BoKelvin/SLAKE"
# the authors' own download calls it validate.json
FILES = {"train": ("train.json",), "validation": ("validation.json", "validate.json"), "test": ("test.json",)}


def slake(
    root: str | None = None,
    revision: str = "main",
    drop_test_images: bool = True,
    questions: Literal["closed", "open", "all"] = "closed",
    n_train: int | None = None,
    n_validation: int = 100,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """SLAKE's English questions in the official split: test sets ``slake`` and ``slake_open``.

    Closed questions answered yes or no have these two options. The other closed ones ("Which is bigger,
    ...") name no options in their row, so they are open here.

    Args:
        root: a local copy; ``None`` asks the hub's cache, then the hub.
        revision: commit of the hub's set; used without ``root`` only.
        drop_test_images: leave training questions out whose image, by its path, the test shows.
        questions: ``closed`` (yes/no), ``open`` (a text answers) or ``all``.
        n_train, n_validation, n_test: sizes; ``None`` takes all. Validation comes from the official part,
            without images of training or test.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    folder = find_set(HUB_ID, root, revision, ["train.json", "validation.json", "test.json", "imgs.zip"])
    images = PictureFolder.among(folder / "imgs", folder / "imgs.zip")
    tables = {
        part: _read(need_files(folder, *names)[0], part, images, questions, on_bad_row)
        for part, names in FILES.items()
    }
    train, validation, test = (tables[part].samples for part in FILES)
    return assemble(
        tables.values(),
        without_images_of(train, test) if drop_test_images else train,
        tests_of("slake", test),
        validation,
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def _read(path: Path, part: str, images: PictureFolder, questions: str, on_bad_row: OnBadRow) -> Table:
    closed, opened = kinds_of(questions)

    def sample(number: int, row: Any) -> VQASample | None:
        if text_of(row, "q_lang") != "en":
            return None
        image, answer = text_of(row, "img_name"), text_of(row, "answer")
        letter = yes_no(answer) if text_of(row, "answer_type").upper() == "CLOSED" else None
        if not (opened if letter is None else closed):
            return None
        return VQASample(
            id=f"slake-{part}-{number}",
            images=(images.handle(image),),
            question=text_of(row, "question"),
            options=() if letter is None else YES_NO,
            answer=letter or answer,
            modality=modality_of(text_of(row, "modality")),
            question_type=text_of(row, "content_type"),
            source="slake",
            image_group=image,
        )

    table = Table()
    table.read(path, enumerate(read_json(path)), sample, on_bad_row)
    return table
