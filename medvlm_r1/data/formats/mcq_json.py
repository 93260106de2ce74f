"""Multiple-choice questions in a JSON file: the papers' files and data of one's own."""

import functools
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.mcq_row import read_row
from medvlm_r1.data.formats.question_file import QuestionFile, plain_stem
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.images.volume import Volumes


class McqJson(QuestionFile):
    """Questions of one JSON (array) or JSONL file, in the layouts that ``mcq_row`` names.

    Args:
        path: the file; one row a question, numbered from 0.
        images: folder that image paths start from. Default: the folder of ``path``.
        modality: modality of every row. Default: read from the row's ``subset``.
        name: what sample ids begin with. Default: the file's stem.
        follow_links: take images outside that folder too; see :class:`ImageRoot`.
        volumes: how DICOM and NIfTI files are shown where a row does not say otherwise.
        window: ``n``, ``offset``, ``exclude``, ``seed``, ``on_bad_row``, ``check_images`` and ``workers``
            of :class:`QuestionFile`.

    Raises:
        BadRowError: a row, or the whole file, cannot be used.
        ValueError: more questions are asked for than there are.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        modality: str | None = None,
        name: str | None = None,
        follow_links: bool = False,
        volumes: Volumes | None = None,
        **window: Any,
    ) -> None:
        path = Path(path)
        root = ImageRoot(path.parent if images is None else images, follow_links, volumes=volumes)
        read = functools.partial(read_row, source=plain_stem(path), root=root, modality=modality)
        super().__init__(path, enumerate(read_json(path)), read, name, **window)
