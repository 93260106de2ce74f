"""Med-R1's splits of OmniMedVQA (arXiv 2503.13939): train on one domain, test on all.

``Splits/{modality,question_type}/{train,test}/<name>_{train,test}.json`` of the authors' repository; a row
is ``image``, ``problem`` (question with inline options) and ``solution`` (letter in answer tags). The
images are OmniMedVQA's, and come apart.

Departure from the released code: it has no validation set. Here one is held out of training, by image,
from images that no test shows.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from medvlm_r1.data.formats.mcq_row import modality_of, read_row
from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import PictureFolder
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.assemble import Table, assemble, without_images_of
from medvlm_r1.data.splits import Questions

AUTHORS = "https://github.com/Yuxiang-Lai117/Med-R1"


def med_r1(
    by: Literal["modality", "question_type"],
    root: str,
    images: str,
    domain: str,
    tests: Sequence[str] | None = None,
    drop_test_images: bool = False,
    n_train: int | None = None,
    n_validation: int = 100,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """One row of Med-R1's generalisation matrix: training on one domain, a test set for each domain.

    Args:
        by: what the domains are.
        root: the authors' repository, its ``Splits``, or ``Splits/<by>``.
        images: OmniMedVQA: the folder that holds ``Images/``, or its archive.
        domain: what to train on, e.g. ``xray`` or ``disease_diagnosis``.
        tests: what to test on; by default all domains that ``root`` has.
        drop_test_images: leave the training questions out whose image a test shows. The official split is
            by question: up to a third of a domain's test rows show an image of its training.
        n_train, n_validation, n_test: sizes (``n_test`` of each test set); ``None`` takes all.
        split_seed: of the held-out questions and of the choice.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the splits or the images are not there.
        BadRowError: a row cannot be used.
        ValueError: there is no such domain, or too few questions.
    """
    top = Path(root)
    folder = next(
        (f for f in (top / "Splits" / by, top / by, top) if (f / "train").is_dir() and (f / "test").is_dir()),
        None,
    )
    if folder is None:
        raise FileNotFoundError(f"data.root={root} holds no Splits/{by}/train and test: clone {AUTHORS}")
    files = {part: _by_domain(folder / part, by) for part in ("train", "test")}
    for name in (domain, *(tests or ())):
        for part, known in files.items():
            if name not in known and (part == "test" or name == domain):
                raise ValueError(f"{folder / part} has no domain {name!r}: it has {', '.join(known)}")
    pictures = PictureFolder(images)
    tables = {
        name: read_file(files["test"][name], name, by, pictures, "test", on_bad_row)
        for name in (tests or files["test"])
    }
    train = read_file(files["train"][domain], domain, by, pictures, "train", on_bad_row)
    tested = [sample for table in tables.values() for sample in table.samples]
    return assemble(
        [train, *tables.values()],
        without_images_of(train.samples, tested) if drop_test_images else train.samples,
        {name: table.samples for name, table in tables.items()},
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def _by_domain(folder: Path, by: str) -> dict[str, Path]:
    """Files by the plain name of their domain, e.g. ``X-Ray_train.json`` by ``xray``."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        name = re.sub(r"_(train|test)$", "", path.stem)
        if by == "modality":
            try:
                found[modality_of(name)] = path
            except BadRowError as error:
                raise BadRowError(f"{path}: its name tells no modality ({error})") from None
        else:
            found[task_of(name)] = path
    return found


def task_of(question_type: str) -> str:
    """The plain name of a question type, e.g. ``disease_diagnosis`` of ``Disease Diagnosis``."""
    return re.sub(r"[^a-z]+", "_", question_type.lower()).strip("_")


def read_file(
    path: Path, domain: str, by: str, images: PictureFolder, part: str, on_bad_row: OnBadRow
) -> Table:
    """The questions of one file.

    Raises:
        BadRowError: a row cannot be used.
    """

    spelt = ImageRoot("", follow_links=True)  # paths as they are: `images` places them
    modality = domain if by == "modality" else "unknown"

    def sample(number: int, row: dict) -> VQASample:
        plain = read_row(row, f"{domain}-{part}-{number}", "OmniMedVQA", spelt, modality)
        paths = [handle.name for handle in plain.images]
        return replace(
            plain,
            images=tuple(images.handle(path) for path in paths),
            # the path as the row spells it: splits must not depend on where the images lie
            image_group="+".join(paths),
            question_type=domain if by == "question_type" else plain.question_type,
        )

    table = Table()
    table.read(path, enumerate(read_json(path)), sample, on_bad_row)
    return table
