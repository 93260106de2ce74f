"""Med-R1's splits of OmniMedVQA (arXiv 2503.13939): train on one domain, test on all.

``Splits/{modality,question_type}/{train,test}/<name>_{train,test}.json`` of the authors' repository; a row
has ``image``, ``problem`` (question with inline options) and ``solution`` (letter in answer tags). The
images are OmniMedVQA's, a separate download.

Departure from the released code: it has no validation set. Here one is held out of training by image, from
the images that no test shows.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.formats.mcq_row import modality_of, read_row
from medvlm_r1.data.formats.question_file import ParsedRows, parse_rows
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.published_set import PublishedSet
from medvlm_r1.data.splits import Questions

AUTHORS = "https://github.com/Yuxiang-Lai117/Med-R1"


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
    files = {part: _by_domain(folder / part, by) for part in ("train", "test")}
    for name in (domain, *(tests or ())):
        for part, known in files.items():
            if name not in known and (part == "test" or name == domain):
                raise ValueError(f"{folder / part} has no domain {name!r}: it has {', '.join(known)}")
    source = ImageStore(images)

    def read(name: str, part: str) -> ParsedRows:
        return read_file(files[part][name], name, by, source, part, settings.rows)

    parts = {name: read(name, "test") for name in (tests or files["test"])}
    train = read(domain, "train")
    sets = {name: part.samples for name, part in parts.items()}
    return settings.assemble([train, *parts.values()], train.samples, sets, drop_test_images=drop_test_images)


def _by_domain(folder: Path, by: str) -> dict[str, Path]:
    """Return the files by the short name of their domain, e.g. ``X-Ray_train.json`` by ``xray``."""
    files = {}
    for path in sorted(folder.glob("*.json")):
        name = re.sub(r"_(train|test)$", "", path.stem)
        try:
            files[modality_of(name) if by == "modality" else task_of(name)] = path
        except BadRowError as error:
            raise BadRowError(f"{path}: its name has no known modality ({error})") from None
    return files


def task_of(question_type: str) -> str:
    """Return the short name of a question type, e.g. ``disease_diagnosis`` for ``Disease Diagnosis``."""
    return re.sub(r"[^a-z]+", "_", question_type.lower()).strip("_")


def read_file(
    path: Path, domain: str, by: str, images: ImageStore, part: str, rows: RowPolicy = STRICT
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
