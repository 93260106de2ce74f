"""Med-R1's splits of OmniMedVQA (arXiv 2503.13939): train on one domain, test on all.

``Splits/{modality,question_type}/{train,test}/<name>_{train,test}.json`` of the authors' repository; a row
has ``image``, ``problem`` (question with inline options) and ``solution`` (letter in answer tags). The
images are OmniMedVQA's, a separate download. The folders hold more than the domains' files: training by
modality has an ``unknown_train.json`` of one row, which no test matches. Files of no domain are not read.
Some rows offer the same option twice: 3 of CT's training part, 5 of ultrasound's, 2 and 3 of Modality
Recognition's two parts.

Departure from the released code: it has no validation set. Here one is held out of training by image, from
the images that no test shows.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.formats.mcq_row import modality_of, read_row
from medvlm_r1.data.formats.question_file import ParsedRows, parse_rows
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.locate import files_of
from medvlm_r1.data.sources.published_set import LENIENT, PublishedSet
from medvlm_r1.data.splits import Questions

logger = logging.getLogger(__name__)

AUTHORS = "https://github.com/Yuxiang-Lai117/Med-R1"
TASKS = (
    "anatomy_identification",
    "disease_diagnosis",
    "lesion_grading",
    "modality_recognition",
    "other_biological_attributes",
)


def med_r1(
    by: Literal["modality", "question_type"],
    root: str,
    images: str,
    domain: str,
    tests: Sequence[str] | None = None,
    drop_test_images: bool = False,
    **shared: Any,
) -> Questions:
    """Load one row of Med-R1's generalisation matrix: training on one domain, a test set for each domain.

    Args:
        by: what the domains are.
        root: the authors' repository, its ``Splits``, or ``Splits/<by>``.
        images: OmniMedVQA: the folder that holds ``Images/``, or its archive.
        domain: training domain, e.g. ``xray`` or ``disease_diagnosis``.
        tests: test domains. Default: all domains in ``root``.
        drop_test_images: leave training questions out whose image a test shows. The official split is by
            question: up to a third of a domain's test rows show an image of its training part.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    settings = PublishedSet(root, **shared)
    folders = (Path(root) / "Splits" / by, Path(root) / by, Path(root))
    folder = next((f for f in folders if (f / "train").is_dir() and (f / "test").is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"data.root={root} holds no Splits/{by}/train and test: clone {AUTHORS}")
    files = {part: _by_domain(folder, part, by) for part in ("train", "test")}
    source = ImageStore(images)

    def file_of(name: str, part: str) -> Path:
        found = files[part].get(name, [])
        if not found:
            known = ", ".join(files[part]) or "none"
            raise ValueError(f"{folder / part} has no domain {name!r}: it has {known}")
        if len(found) > 1:
            raise ValueError(
                f"{found[0]} and {found[1].name} are both {name!r}: keep the authors' file alone"
            )
        return found[0]

    def read(path: Path, name: str, part: str) -> ParsedRows:
        return read_file(path, name, by, source, part, settings.rows)

    # all names are checked before the first file is read
    train_file = file_of(domain, "train")
    test_files = {name: file_of(name, "test") for name in tests or files["test"]}
    parts = {name: read(path, name, "test") for name, path in test_files.items()}
    train = read(train_file, domain, "train")
    sets = {name: part.samples for name, part in parts.items()}
    files_read = {"train": train, **parts}
    return settings.assemble(files_read, train.samples, sets, drop_test_images=drop_test_images)


def _by_domain(folder: Path, part: str, by: str) -> dict[str, list[Path]]:
    """Return the files by the short name of their domain, e.g. ``X-Ray_train.json`` by ``xray``.

    Files of other names, which a copy of the repository may hold too, are passed over.
    """
    files: dict[str, list[Path]] = {}
    for path in files_of(folder / part, "*.json"):
        if (domain := _domain(path.stem.removesuffix(f"_{part}"), by)) is None:
            logger.info("%s is passed over: its name is no %s", path, by.replace("_", " "))
        else:
            files.setdefault(domain, []).append(path)
    return files


def _domain(name: str, by: str) -> str | None:
    """Return the short name of a domain, or ``None`` for any other name."""
    if by == "question_type":
        return task if (task := task_of(name)) in TASKS else None
    try:
        return modality_of(name)
    except BadRowError:
        return None


def task_of(question_type: str) -> str:
    """Return the short name of a question type, e.g. ``disease_diagnosis`` for ``Disease Diagnosis``."""
    return re.sub(r"[^a-z]+", "_", question_type.lower()).strip("_")


def read_file(
    path: Path, domain: str, by: str, images: ImageStore, part: str, rows: RowPolicy = LENIENT
) -> ParsedRows:
    """Read the questions of one file."""
    as_written = ImageRoot("", follow_links=True)  # leaves the paths to `images`
    modality = domain if by == "modality" else "unknown"

    def parse(row: Any, id: str) -> VQASample:
        sample = read_row(row, id, "OmniMedVQA", as_written, modality)
        paths = [handle.name for handle in sample.images]
        return replace(
            sample,
            images=tuple(images.handle(path) for path in paths),
            # the path in the row: splits must not depend on the folder of the images
            image_group="+".join(paths),
            question_type=domain if by == "question_type" else sample.question_type,
        )

    return parse_rows(enumerate(read_json(path)), path, parse, rows, f"{domain}-{part}")
