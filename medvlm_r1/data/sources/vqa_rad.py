"""VQA-RAD (Lau et al., Scientific Data 2018): clinicians' questions on radiology images.

``data/{train,test}-*.parquet`` of the hub's copy: ``image`` (embedded), ``question``, ``answer``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.formats.hf_load import load_parquet
from medvlm_r1.data.formats.question_file import ParsedRows, concatenate, parse_rows, require_rows
from medvlm_r1.data.images.arrow import ArrowRows
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.fields import YES_NO, Include, includes, text_of, yes_no_letter
from medvlm_r1.data.sources.locate import need_files
from medvlm_r1.data.sources.published_set import PublishedSet, closed_and_open
from medvlm_r1.data.splits import Questions, split_by_image

HUB_ID = "flaviagiammarino/vqa-rad"


def vqa_rad(
    split: Literal["by_image", "official"] = "by_image",
    test_share: float = 0.25,
    questions: Include = "closed",
    **shared: Any,
) -> Questions:
    """Load VQA-RAD, with the test sets ``vqa_rad`` (yes/no, as options) and ``vqa_rad_open``.

    Warning: 202 of the official test's 203 images are also in its training part. ``split=official``
    therefore measures how well a model answers about images that it was trained on; use it to compare with
    published figures only.

    Args:
        split: ``by_image`` pools both parts and draws ``test_share`` of the images for the test.
        test_share: fraction of the images in the test; unused by the official split.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    if split not in ("by_image", "official"):
        raise ValueError(f"data.split is {split!r}: use 'by_image' or 'official'")
    settings = PublishedSet(**shared)
    parts = read_embedded(settings, HUB_ID, ("train", "test"), "vqa_rad", "unknown", questions)
    train, test = (part.samples for part in parts.values())
    if split == "by_image":
        parts = {"all": concatenate(parts.values())}
        require_rows("the set", parts["all"].samples, parts["all"].skipped)
        train, test = split_by_image(parts["all"].samples, test_share, settings.split_seed)
    return settings.assemble(parts, train, closed_and_open("vqa_rad", test))


def read_embedded(
    settings: PublishedSet, hub_id: str, parts: Sequence[str], name: str, modality: str, questions: Include
) -> dict[str, ParsedRows]:
    """Read a set whose Parquet files have the columns ``image``, ``question`` and ``answer``.

    Args:
        parts: begin the names of the files.
        name: of the set, also of its test part; begins the sample ids.
        modality: of every question.
    """
    folder = settings.find(hub_id, [f"data/{part}-*.parquet" for part in parts])
    images = ArrowRows()  # shared by the parts: an image has one handle in all of them
    columns = dict.fromkeys(("image", "question", "answer"), False)

    def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        return images.read(load_parquet(path), path.as_posix(), columns)

    def parse(row: Any, id: str) -> VQASample | None:
        image, question = row["image"], text_of(row, "question")
        if image is None:
            raise BadRowError("has no image bytes: fetch the set again")
        answer = text_of(row, "answer")
        letter = yes_no_letter(answer)
        if not includes(questions, is_open=letter is None):
            return None
        return VQASample(
            id=id,
            images=(image,),
            question=question,
            options=() if letter is None else YES_NO,
            answer=letter or answer,
            modality=modality,
            question_type="open" if letter is None else "closed",
            source=name,
            image_group=image.digest[:16],
        )

    return {
        name if part == "test" else part: concatenate(
            parse_rows(rows(path), path, parse, settings.rows, f"{name}-{part}-{shard}")
            for shard, path in enumerate(need_files(folder, f"data/{part}-*.parquet", f"{part}-*.parquet"))
        )
        for part in parts
    }
