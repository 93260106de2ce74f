"""OmniMedVQA (arXiv 2402.09181): 12 modalities, 5 question types, 73 sources; split by image.

``QA_information/{Open-access,Restricted-access}/*.json`` and ``Images/``, in one archive on the hub, which is
read without unpacking it. A row has ``question_type``, ``question``, ``gt_answer`` (text), ``image_path``,
``option_A`` to ``option_D`` (rows with two options lack the last two, or have them empty) and
``modality_type``, which one file calls ``modality``.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.formats.options import answer_letter
from medvlm_r1.data.formats.question_file import ParsedRows, concatenate, parse_rows, require_rows
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.sources.fields import known_modality, lettered_options, text_of
from medvlm_r1.data.sources.med_r1 import task_of
from medvlm_r1.data.sources.published_set import PublishedSet
from medvlm_r1.data.splits import Questions, draw, hold_out, split_by_image

HUB_ID = "foreverbeliever/OmniMedVQA"
ARCHIVE = "OmniMedVQA.zip"
ACCESS = {"open": "Open-access", "restricted": "Restricted-access"}


def omnimedvqa(
    images: str | None = None,
    access: Sequence[str] = ("open",),
    by: Literal["modality", "question_type"] = "modality",
    domain: str | Sequence[str] | None = None,
    tests: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
    test_share: float = 0.2,
    **shared: Any,
) -> Questions:
    """Load OmniMedVQA, which has no official split: a fraction of the images is the test.

    The split is drawn over all rows of ``access``, before any filter: all choices of domains share it.

    Args:
        images: the folder that holds ``Images/``, or an archive, where they are not in ``root``.
        access: ``open``, ``restricted`` or both.
        by: what a domain is.
        domain: one or several training domains; ``None`` takes all.
        tests: test domains, each a test set; ``None`` takes all.
        modalities, question_types: use only questions of these, in all splits; ``None`` takes all.
        test_share: fraction of the images in the test.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`;
            ``n_train`` and ``n_test`` count the questions of each domain, ``n_validation`` those of all.
    """
    if by not in ("modality", "question_type"):
        raise ValueError(f"data.by is {by!r}: use 'modality' or 'question_type'")
    settings = PublishedSet(**shared)
    place, paths = _question_files(settings.find(HUB_ID, [ARCHIVE]), access)
    source = ImageStore(images or place)
    rows = concatenate(_read(path, source, settings.rows) for path in paths)
    require_rows("the set", rows.samples, rows.skipped)
    filters = {"modality": modalities, "question_type": question_types}
    for key, names in filters.items():
        _check_names(names or (), rows.samples, key)
    train, test = (
        [s for s in part if all(names is None or getattr(s, k) in names for k, names in filters.items())]
        for part in split_by_image(rows.samples, test_share, settings.split_seed)
    )
    domains = [domain] if isinstance(domain, str) else domain or _names(train, by)
    _check_names([*domains, *(tests or ())], rows.samples, by)
    rest, validation = hold_out(
        [s for s in train if getattr(s, by) in domains], settings.n_validation, settings.split_seed
    )
    of_domain = {name: [s for s in rest if getattr(s, by) == name] for name in domains}
    drawn = [draw(part, settings.n_train, settings.split_seed, name) for name, part in of_domain.items()]
    return replace(settings, n_train=None).assemble(
        {"all": rows},
        [sample for part in drawn for sample in part],
        {name: [s for s in test if getattr(s, by) == name] for name in tests or _names(test, by)},
        validation,
    )


def _question_files(folder: Path, access: Sequence[str]) -> tuple[Path, list[Any]]:
    """Return the folder or archive that contains ``QA_information``, and its files of questions."""
    unpacked = (top for top in (folder, folder / "OmniMedVQA") if (top / "QA_information").is_dir())
    place = next(unpacked, folder / ARCHIVE if folder.is_dir() else folder)
    if unknown := [a for a in access if a not in ACCESS] or not access:
        raise ValueError(f"data.access is {unknown or list(access)}: use {' or '.join(ACCESS)}")
    if place.is_dir():
        roots = [place]
    elif zipfile.is_zipfile(place):
        roots = [zipfile.Path(place), zipfile.Path(place, "OmniMedVQA/")]
    else:
        raise FileNotFoundError(
            f"{place} is not an archive: set data.root to {ARCHIVE} of {HUB_ID}, or to the folder that holds "
            "its QA_information/ and Images/"
        )
    for root in roots:
        folders = [root / "QA_information" / ACCESS[a] for a in access]
        if all(folder.is_dir() for folder in folders):
            break
    else:
        raise FileNotFoundError(f"{place} lacks QA_information/{ACCESS[access[0]]} or another of {access}")
    files = [file for folder in folders for file in sorted(folder.iterdir(), key=str)]
    return place, [file for file in files if file.name.endswith(".json") and not file.name.startswith(".")]


def _read(path: Any, images: ImageStore, rows: RowPolicy) -> ParsedRows:
    def parse(row: Any, id: str) -> VQASample:
        question, image = text_of(row, "question"), text_of(row, "image_path")
        options, _ = lettered_options({letter: row.get(f"option_{letter}") for letter in "ABCD"})
        return VQASample(
            id=id,
            images=(images.handle(image),),
            question=question,
            options=options,
            answer=answer_letter(text_of(row, "gt_answer"), options),
            modality=known_modality(row, "modality_type" if "modality_type" in row else "modality"),
            question_type=task_of(text_of(row, "question_type")),
            source=text_of(row, "dataset"),
            image_group=image,
        )

    # both accesses may have a file of this name
    name = f"{path.parent.name}-{path.name.removesuffix('.json')}".replace(" ", "_")
    return parse_rows(enumerate(read_json(path)), path, parse, rows, name)


def _names(samples: Sequence[VQASample], by: str) -> list[str]:
    return sorted({getattr(sample, by) for sample in samples})


def _check_names(names: Sequence[str], samples: Sequence[VQASample], by: str) -> None:
    known = _names(samples, by)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no question of {by} {unknown[0]!r}: there are {', '.join(known)}")
