"""Multiple-choice questions in a JSON file: the papers' files and your own (``conf/data/mcq_json.yaml``)."""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.mcq_row import read_row
from medvlm_r1.data.formats.question_file import FileSplit, QuestionFile, plain_stem, test_files
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.sources.fields import Include, includes
from medvlm_r1.data.splits import Questions


def mcq_json(
    train: str,
    test: Mapping[Any, str],
    images: str | None = None,
    modality: str | None = None,
    questions: Include | None = None,
    rows: RowPolicy = STRICT,
    **split: Any,
) -> Questions:
    """Load questions in the papers' JSON schema, with images from any folder.

    Args:
        train: file of training questions.
        test: files of test questions by test set name.
        images: folder that image paths start from. Default: each file's own.
        modality: of every training question, for files whose rows have none; each test set's name is then
            its modality.
        split: see :class:`~medvlm_r1.data.formats.question_file.FileSplit`.
    """
    read = functools.partial(McqJson, images=images, questions=questions, rows=rows)
    tests = {
        name: read(path, name=name, modality=name if modality else None)
        for name, path in test_files(test).items()
    }
    return FileSplit(**split).questions(functools.partial(read, modality=modality), train, tests)


class McqJson(QuestionFile):
    """Questions of one JSON (array) or JSONL file, in the schemas of :mod:`~medvlm_r1.data.formats.mcq_row`.

    Args:
        path: the file; rows are numbered from 0.
        images: folder that image paths start from. Default: the folder of ``path``.
        modality: modality of every row. Default: each row's ``subset``.
        questions: use those with options (``closed``), without (``open``) or ``all``. Default: every row
            needs options.
        name, n, rows: as for :class:`~medvlm_r1.data.formats.question_file.QuestionFile`.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        modality: str | None = None,
        questions: Include | None = None,
        name: str | None = None,
        n: int | None = None,
        rows: RowPolicy = STRICT,
    ) -> None:
        path = Path(path)
        root = ImageRoot(path.parent if images is None else images, rows.follow_links, volumes=rows.volumes)
        source, left_out = plain_stem(path), Counter()
        if questions is not None:
            includes(questions, is_open=False)  # an unknown value is an error whatever the rows

        def parse(row: Any, id: str) -> VQASample | None:
            sample = read_row(row, id, source, root, modality, may_be_open=questions is not None)
            if questions is None or includes(questions, sample.is_open):
                return sample
            left_out[f"data.questions={questions}"] += 1
            return None

        super().__init__(path, enumerate(read_json(path)), parse, name, n, rows, left_out)
