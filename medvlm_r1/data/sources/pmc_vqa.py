"""PMC-VQA (arXiv 2305.10415): questions that a language model wrote about figures of papers.

Version 1 is ``train.csv``, ``test.csv`` and ``images.zip`` with ``Figure_path``, ``Question``, ``Answer``,
``Choice A`` to ``Choice D`` (values begin ``A:``) and ``Answer_label``; version 2 is ``train_2.csv``,
``test_2.csv`` and ``images_2.zip`` with ``figure_path``, ``caption``, ``question``, ``choiceA`` to
``choiceD``, ``answer`` and ``split``. Column names match regardless of case, space and underscore.
"""

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.options import answer_letter
from medvlm_r1.data.formats.question_file import ParsedRows, parse_rows
from medvlm_r1.data.formats.values import text_or_none
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample
from medvlm_r1.data.sources.fields import lettered_options, text_of
from medvlm_r1.data.sources.locate import need_files
from medvlm_r1.data.sources.published_set import PublishedSet
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.shorten import shorten

HUB_ID = "RadGenome/PMC-VQA"
SUFFIX = {1: "", 2: "_2"}


def pmc_vqa(version: int = 2, drop_test_images: bool = True, **shared: Any) -> Questions:
    """Load PMC-VQA in its official split, with the test set ``pmc_vqa``; validation is held out by image.

    Some of the generated questions have the same option twice, which makes their row unusable.

    Args:
        version: 1 (all figures) or 2 (no compound figures).
        drop_test_images: leave training questions out whose figure the test shows.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    if version not in SUFFIX:
        raise ValueError(f"data.version is {version!r}: use 1 or 2")
    settings, end = PublishedSet(**shared), SUFFIX[version]
    folder = settings.find(HUB_ID, [f"train{end}.csv", f"test{end}.csv", f"images{end}.zip"])
    # version 2's archive unpacks to figures/
    tops = ["images"] if version == 1 else ["images_2", "figures"]
    images = ImageStore(*(folder / top for top in tops), folder / f"images{end}.zip")

    def parse(row: dict[str, str], id: str) -> VQASample:
        options, letters = lettered_options({a: _option(row.get(f"choice{a.lower()}"), a) for a in "ABCD"})
        figure = text_of(row, "figurepath")
        return VQASample(
            id=id,
            images=(images.handle(figure),),
            question=text_of(row, "question"),
            options=options,
            answer=_letter(row, options, letters),
            modality="unknown",
            question_type="multiple-choice",
            source="pmc_vqa",
            image_group=figure,
        )

    def read(part: str) -> ParsedRows:
        path = need_files(folder, f"{part}{end}.csv")[0]
        return parse_rows(_rows(path), path, parse, settings.rows, f"pmc_vqa-{part}")

    parts = {"train": read("train"), "pmc_vqa": read("test")}
    train, test = (part.samples for part in parts.values())
    return settings.assemble(parts, train, {"pmc_vqa": test}, drop_test_images=drop_test_images)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    limit = csv.field_size_limit(sys.maxsize)  # captions are long
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                yield number, {_plain(key): value for key, value in row.items() if key and value is not None}
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadRowError(f"{path} is not a readable CSV file ({error}): fetch it again") from error
    finally:
        csv.field_size_limit(limit)


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _option(value: Any, letter: str) -> str | None:
    """Return the text of a choice such as `` A: Lung `` or ``Lung``; ``None`` for a missing one."""
    text = text_or_none(value)
    return None if text is None else re.sub(rf"^{letter}\s*:", "", text.strip()).strip()


def _letter(row: dict[str, Any], options: tuple[str, ...], letters: dict[str, str]) -> str:
    text = text_of(row, "answer")
    label = text_of(row, "answerlabel") if "answerlabel" in row else text
    if label not in letters:
        if "answerlabel" in row or label in tuple("ABCD"):
            raise BadRowError(f"the answer's letter is {shorten(label)}: give one of {', '.join(letters)}")
        return answer_letter(label, options)
    letter = letters[label]
    if text != label and text in options and LETTERS[options.index(text)] != letter:
        raise BadRowError(f"label {label} disagrees with the answer {shorten(text)}, which is another option")
    return letter
