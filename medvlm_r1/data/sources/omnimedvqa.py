"""OmniMedVQA (arXiv 2402.09181): 12 modalities, 5 question types, 73 sources; split by image.

``QA_information/{Open-access,Restricted-access}/*.json`` beside ``Images/``, in one archive on the hub,
which need not be unpacked. A row has ``question_type``, ``question``, ``gt_answer`` (text), ``image_path``,
``option_A`` to ``option_D`` (rows with two options lack the last two) and ``modality_type``, which one
file calls ``modality``.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.formats.mcq_row import modality_of
from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import PictureFolder
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.sources.assemble import Table, assemble, draw, letter_of, split_by_image, text_of
from medvlm_r1.data.sources.locate import find_set
from medvlm_r1.data.sources.med_r1 import task_of
from medvlm_r1.data.splits import Questions, hold_out

HUB_ID = "foreverbeliever/OmniMedVQA"
ARCHIVE = "OmniMedVQA.zip"
ACCESS = {"open": "Open-access", "restricted": "Restricted-access"}


def omnimedvqa(
    root: str | None = None,
    images: str | None = None,
    revision: str = "main",
    access: Sequence[str] = ("open",),
    by: Literal["modality", "question_type"] = "modality",
    domain: str | Sequence[str] | None = None,
    tests: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
    test_share: float = 0.2,
    n_train: int | None = None,
    n_validation: int = 100,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """OmniMedVQA, which has no official split: a share of the images tests.

    The split is drawn over all rows of ``access``, before any filter, so that every choice of domains
    shares it.

    Args:
        root: a local copy, unpacked or the archive; ``None`` asks the hub's cache, then the hub.
        images: the folder that holds ``Images/``, or an archive, where they are not in ``root``.
        revision: commit of the hub's set; used without ``root`` only.
        access: ``open``, ``restricted`` or both.
        by: what a domain is.
        domain: what to train on, one or several; ``None`` for all.
        tests: what to test on, each a test set; ``None`` for all.
        modalities, question_types: ask only about these, everywhere; ``None`` for all.
        test_share: share of the images that test.
        n_train: training questions of each domain.
        n_validation: validation questions in all.
        n_test: test questions of each domain.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there is no such domain, or too few questions.
    """
    if by not in ("modality", "question_type"):
        raise ValueError(f"data.by is {by!r}: use 'modality' or 'question_type'")
    place = _unpacked_or_archive(find_set(HUB_ID, root, revision, [ARCHIVE]))
    files, table = _question_files(place, access), Table()
    pictures = PictureFolder(images or place)
    for path in files:
        _read(table, path, pictures, on_bad_row)
    wanted = {"modality": modalities, "question_type": question_types}
    for key, names in wanted.items():
        _check_names(names or (), table.samples, key)
    train, test = split_by_image(table.samples, test_share, split_seed)
    train, test = (
        [s for s in part if all(names is None or getattr(s, k) in names for k, names in wanted.items())]
        for part in (train, test)
    )
    domains = [domain] if isinstance(domain, str) else domain or _names(train, by)
    _check_names([*domains, *(tests or ())], table.samples, by)
    rest, validation = hold_out([s for s in train if getattr(s, by) in domains], n_validation, split_seed)
    of_domain = {name: [s for s in rest if getattr(s, by) == name] for name in domains}
    return assemble(
        [table],
        [s for name, part in of_domain.items() for s in draw(part, n_train, split_seed, name)],
        {name: [s for s in test if getattr(s, by) == name] for name in tests or _names(test, by)},
        validation,
        n_train=None,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def _unpacked_or_archive(folder: Path) -> Path:
    """The folder or archive whose ``QA_information`` is to be read."""
    for place in (folder, folder / "OmniMedVQA"):
        if (place / "QA_information").is_dir():
            return place
    return folder / ARCHIVE if folder.is_dir() else folder


def _question_files(place: Path, access: Sequence[str]) -> list[Any]:
    """Files of questions, on disk or inside the archive (``zipfile.Path`` reads alike)."""
    if unknown := [a for a in access if a not in ACCESS] or not access:
        raise ValueError(f"data.access is {unknown or list(access)}: use {' or '.join(ACCESS)}")
    if place.is_dir():
        roots = [place]
    elif zipfile.is_zipfile(place):
        roots = [zipfile.Path(place), zipfile.Path(place, "OmniMedVQA/")]
    else:
        raise FileNotFoundError(
            f"{place} is no archive: set data.root to {ARCHIVE} of {HUB_ID}, or to the folder that holds "
            "its QA_information/ and Images/"
        )
    for root in roots:
        folders = [root / "QA_information" / ACCESS[a] for a in access]
        if all(folder.is_dir() for folder in folders):
            break
    else:
        raise FileNotFoundError(f"{place} lacks QA_information/{ACCESS[access[0]]} or another of {access}")
    files = [file for folder in folders for file in sorted(folder.iterdir(), key=str)]
    return [file for file in files if file.name.endswith(".json")]


def _read(table: Table, path: Any, images: PictureFolder, on_bad_row: OnBadRow) -> None:
    # the same data set may have a file under either access
    stem = f"{path.parent.name}-{path.name.removesuffix('.json')}".replace(" ", "_")

    def sample(number: int, row: dict[str, Any]) -> VQASample:
        question, image = text_of(row, "question"), text_of(row, "image_path")
        given = [row.get(f"option_{letter}") for letter in "ABCD"]
        options = tuple(str(option).strip() for option in given if option is not None)
        return VQASample(
            id=f"{stem}-{number}",
            images=(images.handle(image),),
            question=question,
            options=options,
            answer=letter_of(text_of(row, "gt_answer"), options),
            modality=modality_of(text_of(row, "modality_type" if "modality_type" in row else "modality")),
            question_type=task_of(text_of(row, "question_type")),
            source=text_of(row, "dataset"),
            image_group=image,
        )

    table.read(path, enumerate(read_json(path)), sample, on_bad_row)


def _names(samples: Sequence[VQASample], by: str) -> list[str]:
    return sorted({getattr(sample, by) for sample in samples})


def _check_names(names: Sequence[str], samples: Sequence[VQASample], by: str) -> None:
    known = _names(samples, by)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no question of {by} {unknown[0]!r}: there are {', '.join(known)}")
