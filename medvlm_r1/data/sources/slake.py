"""SLAKE (arXiv 2102.09542) in English: radiology questions with modality, organ and content type.

``{train,validation,test}.json`` and ``imgs.zip`` (or ``imgs/``); a row has ``img_name``, ``question``,
``answer``, ``q_lang``, ``modality``, ``answer_type`` (OPEN or CLOSED) and ``content_type``.
"""

from typing import Any

from medvlm_r1.data.formats.question_file import ParsedRows, parse_rows
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.sources.fields import YES_NO, Include, includes, known_modality, text_of, yes_no_letter
from medvlm_r1.data.sources.locate import need_files
from medvlm_r1.data.sources.published_set import PublishedSet, closed_and_open
from medvlm_r1.data.splits import Questions

HUB_ID = "BoKelvin/SLAKE"
# the authors' own download calls it validate.json
FILES = {"train": ("train.json",), "validation": ("validation.json", "validate.json"), "test": ("test.json",)}


def slake(drop_test_images: bool = True, questions: Include = "closed", **shared: Any) -> Questions:
    """Load SLAKE's English questions in the official split, with the test sets ``slake`` and ``slake_open``.

    Closed questions with the answer yes or no have these two options. The other closed ones ("Which is
    bigger, ...") have no options in their row, so they count as open here.

    Args:
        drop_test_images: leave training questions out whose image, by its path, the test shows.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    settings = PublishedSet(**shared)
    folder = settings.find(HUB_ID, ["train.json", "validation.json", "test.json", "imgs.zip"])
    images = ImageStore(folder / "imgs", folder / "imgs.zip")

    def parse(row: Any, id: str) -> VQASample | None:
        if text_of(row, "q_lang") != "en":
            return None
        image, answer = text_of(row, "img_name"), text_of(row, "answer")
        letter = yes_no_letter(answer) if text_of(row, "answer_type").upper() == "CLOSED" else None
        if not includes(questions, is_open=letter is None):
            return None
        return VQASample(
            id=id,
            images=(images.handle(image),),
            question=text_of(row, "question"),
            options=() if letter is None else YES_NO,
            answer=letter or answer,
            modality=known_modality(row, "modality"),
            question_type=text_of(row, "content_type"),
            source="slake",
            image_group=image,
        )

    def read(part: str) -> ParsedRows:
        path = need_files(folder, *FILES[part])[0]
        return parse_rows(enumerate(read_json(path)), path, parse, settings.rows, f"slake-{part}")

    parts = {"slake" if part == "test" else part: read(part) for part in FILES}
    train, validation, test = (part.samples for part in parts.values())
    return settings.assemble(parts, train, closed_and_open("slake", test), validation, drop_test_images)
