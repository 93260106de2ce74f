"""PMC-VQA (arXiv 2305.10415): questions that a language model wrote about figures of papers.

Version 1 is ``train.csv``, ``test.csv`` and ``images.zip`` with ``Figure_path``, ``Question``, ``Answer``,
``Choice A`` to ``Choice D`` (values begin ``A:``) and ``Answer_label``; version 2 is ``train_2.csv``,
``test_2.csv`` and ``images_2.zip`` with ``figure_path``, ``caption``, ``question``, ``choiceA`` to
``choiceD``, ``answer`` and ``split``. Columns are matched without regard to case, space and underscore.
"""

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.images.embedded import PictureFolder
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.assemble import Table, assemble, letter_of, text_of, without_images_of
from medvlm_r1.data.sources.locate import find_set, need_files
from medvlm_r1.data.splits import Questions

HUB_ID = "RadGenome/PMC-VQA"
SUFFIX = {1: "", 2: "_2"}


def pmc_vqa(
    root: str | None = None,
    revision: str = "main",
    version: int = 2,
    drop_test_images: bool = True,
    n_train: int | None = None,
    n_validation: int = 100,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "skip",
) -> Questions:
    """PMC-VQA in its official split, one test set ``pmc_vqa``; validation is held out of training by image.

    Args:
        root: a local copy; ``None`` asks the hub's cache, then the hub.
        revision: commit of the hub's set; used without ``root`` only.
        version: 1 (all figures) or 2 (no compound figures).
        drop_test_images: leave training questions out whose figure the test shows.
        n_train, n_validation, n_test: sizes; ``None`` takes all.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``; generated questions may hold the same option twice.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    if version not in SUFFIX:
        raise ValueError(f"data.version is {version!r}: use 1 or 2")
    end = SUFFIX[version]
    needed = [f"train{end}.csv", f"test{end}.csv", f"images{end}.zip"]
    folder = find_set(HUB_ID, root, revision, needed)
    # version 2's archive unpacks to figures/
    tops = ["images"] if version == 1 else ["images_2", "figures"]
    images = PictureFolder.among(*(folder / top for top in tops), folder / f"images{end}.zip")
    train, test = (
        _read(need_files(folder, f"{part}{end}.csv")[0], part, images, on_bad_row)
        for part in ("train", "test")
    )
    return assemble(
        [train, test],
        without_images_of(train.samples, test.samples) if drop_test_images else train.samples,
        {"pmc_vqa": test.samples},
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(sys.maxsize)  # captions run long
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                yield number, {_plain(key): value for key, value in row.items() if key and value is not None}
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadRowError(f"{path} is no readable CSV ({error}): fetch it again") from error


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _read(path: Path, part: str, images: PictureFolder, on_bad_row: OnBadRow) -> Table:
    def sample(number: int, row: dict[str, str]) -> VQASample:
        options = tuple(_option(text_of(row, f"choice{a.lower()}"), a) for a in "ABCD")
        figure = text_of(row, "figurepath")
        return VQASample(
            id=f"pmc_vqa-{part}-{number}",
            images=(images.handle(figure),),
            question=text_of(row, "question"),
            options=options,
            answer=_letter(row, options),
            modality="unknown",
            question_type="multiple-choice",
            source="pmc_vqa",
            image_group=figure,
        )

    table = Table()
    table.read(path, _rows(path), sample, on_bad_row)
    return table


def _option(value: str, letter: str) -> str:
    """The text of a choice such as `` A: Lung `` or ``Lung``."""
    return re.sub(rf"^{letter}\s*:", "", value.strip()).strip()


def _letter(row: dict[str, Any], options: tuple[str, ...]) -> str:
    text = text_of(row, "answer")
    label = text_of(row, "answerlabel") if "answerlabel" in row else text
    if label not in tuple("ABCD"):
        if "answerlabel" in row:
            raise BadRowError(f"Answer_label is {label!r}: give one of A, B, C, D")
        return letter_of(label, options)
    if text != label and text in options and options.index(text) != "ABCD".index(label):
        raise BadRowError(f"label {label} disagrees with the answer {text!r}, which is another option")
    return label
