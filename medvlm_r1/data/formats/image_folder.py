"""A folder of labelled images, turned into multiple-choice questions (``conf/data/image_folder.yaml``).

The labels are in a CSV file (``file,label[,split,patient,slice,window]``) or are the names of the subfolders.
"""

import functools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.columns import nearest_name
from medvlm_r1.data.formats.csv_rows import read_csv
from medvlm_r1.data.formats.question_file import QuestionFile, plain_stem, skipped_rows, test_files
from medvlm_r1.data.formats.question_template import QuestionTemplate
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.values import id_or_none, text_or_none
from medvlm_r1.data.images.resolve import ImageRoot, is_dicom_file, is_image, with_settings
from medvlm_r1.data.sample import BadRowError, VQASample, keep_images
from medvlm_r1.data.splits import Per, Questions, choose, hold_out
from medvlm_r1.runs.shorten import clip, shorten

logger = logging.getLogger(__name__)

SPLITS = {"train": "train", "test": "test", **dict.fromkeys(("validation", "valid", "val"), "validation")}
_COLUMNS = ("file", "label", "split", "patient", "slice", "window")
_MODALITY_NAMES = {"mri": "MRI", "ct": "CT", "xray": "X-ray", "oct": "OCT"}  # as questions spell them


def image_folder(
    folder: str,
    modality: str,
    labels: str | None = None,
    test: Mapping[Any, str] | None = None,
    n_train: int | None = None,
    n_train_per: Per | None = None,
    n_validation: int = 100,
    n_test: int = 300,
    split_seed: int = 0,
    **labelled: Any,
) -> Questions:
    """Load a folder of labelled images, and folders of other images to test on.

    A column ``split`` of the labels file is the split. Without one, test questions (unless ``test`` has a
    folder for this modality) and validation questions are held out, whole patients at a time.

    Args:
        folder, modality, labels, labelled: see :class:`ImageFolder`, also for errors.
        test: folders by their modality, with labels in the same form.
        n_train, n_train_per: number of training questions; see :func:`~medvlm_r1.data.splits.choose`.
        n_test: number of test questions, where they are held out.
        split_seed: seed of all random choices of questions.
    """
    read = functools.partial(ImageFolder, labels=labels, **labelled)
    tests = {
        name: read(path, modality=name, name=f"{name}-test") for name, path in test_files(test or {}).items()
    }
    source = read(folder, modality, name=modality)
    skipped, refused = skipped_rows({"train": source, **tests})
    rest, validation, own_test = list(source), [], []
    if source.splits:
        rest, validation, own_test = (
            [s for s in source if source.splits[s.id] == part] for part in ("train", "validation", "test")
        )
        validation = validation[:n_validation]
    elif modality not in tests and n_test:
        rest, own_test = hold_out(rest, n_test, split_seed, what="test")
    if own_test and modality not in tests:
        tests = {modality: own_test, **tests}
    if not validation:
        tested = {sample.image_group for part in tests.values() for sample in part}
        rest, validation = hold_out(rest, n_validation, split_seed, avoid=tested)
    return Questions(choose(rest, n_train, split_seed, n_train_per), validation, tests, skipped, refused)


class ImageFolder(QuestionFile):
    """One question for each labelled image of a folder.

    Args:
        folder: the images.
        modality: modality of all images.
        labels: a CSV file with the columns ``file`` and ``label``, and optionally ``split`` (train,
            validation or test), ``patient``, and ``slice`` and ``window`` of DICOM and NIfTI files as in
            :class:`~medvlm_r1.data.formats.columns.Columns`; its path starts from ``folder``. Default: an
            image's label is the name of its subfolder; below that, a folder with DICOM files is one series
            and one image.
        template: the question. Default: :class:`QuestionTemplate` with its defaults.
        group: a regular expression that finds the patient in a file's path: its first group, or else the
            whole match, names the patient. Default: the column ``patient``, or else every image is its own
            group.
        name: prefix of the sample ids. Default: the folder's name.
        delimiter, encoding: of the CSV file; see :func:`~medvlm_r1.data.formats.csv_rows.read_csv`.
        rows: as for :class:`~medvlm_r1.data.formats.question_file.QuestionFile`.

    Attributes:
        splits: train, validation or test by sample id; empty where the labels file has no split.

    Raises:
        BadRowError: a row or an image cannot be used, or the folder holds no labelled image.
        ValueError: the template does not fit the labels.
    """

    image_remedy = "replace the file, or correct its name"

    def __init__(
        self,
        folder: str | Path,
        modality: str,
        labels: str | None = None,
        template: QuestionTemplate | None = None,
        group: str | None = None,
        name: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8-sig",
        rows: RowPolicy = STRICT,
    ) -> None:
        folder, template = Path(folder), template or QuestionTemplate()
        place, entries = find_labels(folder, labels, delimiter, encoding)
        known = sorted({row["label"] for row in entries if isinstance(row, dict) and row.get("label")})
        template.check(known)
        source = plain_stem(folder.absolute())
        root, pattern = ImageRoot(folder, rows.follow_links, "data.folder", rows.volumes), _pattern(group)

        def parse(row: Mapping[str, Any], id: str) -> VQASample:
            return read_labelled(row, id, known, template, modality, source, root, pattern)

        name = name or source
        super().__init__(place, enumerate(entries), parse, name, rows=rows)
        splits = {f"{name}-{i}": row.get("split") for i, row in enumerate(entries) if isinstance(row, dict)}
        self.splits = {s.id: SPLITS[splits[s.id]] for s in self if splits[s.id]}


def find_labels(
    folder: Path, labels: str | None, delimiter: str | None, encoding: str
) -> tuple[Path, list[dict | BadRowError]]:
    """Find the labelled images of a folder.

    Returns:
        The file or folder for messages, and the rows: ``file`` and ``label``, or all columns of the CSV file.
    """
    if not folder.is_dir():
        raise BadRowError(f"{folder} is no folder: check data.folder and data.test")
    if labels is None:
        others: list[str] = []
        rows = [
            {"file": file, "label": label.name}
            for label in sorted(folder.iterdir())
            if label.is_dir() and not label.name.startswith(".")
            for file in _images_below(label, folder, others)
        ]
        if others:
            reason = "no image by suffix, and no DICOM"
            logger.warning(
                "%s: %d files left out (%s); the first: %s", folder, len(others), reason, others[0]
            )
        if not rows:
            raise BadRowError(
                f"{folder} has no subfolders with images: sort the images into one subfolder a label, or "
                "set data.labels to a CSV file in it with the columns file and label"
            )
        return folder, rows
    path = folder / labels
    rows = read_csv(path, delimiter, encoding)
    existing = list(next((row for row in rows if isinstance(row, dict)), {}))
    for column in ("file", "label"):
        if existing and column not in existing:
            near = nearest_name(column, [c for c in existing if c not in _COLUMNS])
            hint = f"rename {shorten(near)}; " if near else ""
            names = clip(", ".join(existing), 500)
            raise BadRowError(f"{path} has no column {column!r}: {hint}it has {names} (or use data=table)")
    for column in existing:
        near = get_close_matches(column[:50].lower(), _COLUMNS, n=1, cutoff=0.75)
        if column not in _COLUMNS and near and near[0] not in existing:
            raise BadRowError(
                f"{path}: unknown column {shorten(column)}: rename it to {near[0]!r}, or remove it"
            )
    rows = [_plain(row) if isinstance(row, dict) else row for row in rows]
    if any(isinstance(row, dict) and row.get("split") for row in rows):
        no_split = BadRowError("has no split, but other rows have one: fill it in")
        rows = [no_split if isinstance(row, dict) and not row["split"] else row for row in rows]
    return path, rows


def _plain(row: dict) -> dict:
    """Return a row of the labels file in which equal labels, patients and splits have equal texts."""
    split = text_or_none(row.get("split"))
    texts = {"label": id_or_none(row["label"]), "patient": id_or_none(row.get("patient"))}
    return {**row, **texts, "split": split and split.casefold()}


def _images_below(label: Path, folder: Path, others: list[str]) -> list[str]:
    """Return the images below a folder, and add its other files to ``others``; hidden ones are ignored."""
    images = []
    for parent, folders, files in os.walk(label):  # does not follow symbolic links
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths = [Path(parent) / file for file in sorted(files) if not file.startswith(".")]
        found = {path: is_image(path) for path in paths}
        others += [path.relative_to(folder).as_posix() for path in paths if not found[path]]
        paths = [path for path in paths if found[path]]
        if Path(parent) != label and any(map(is_dicom_file, paths)):
            paths = [Path(parent), *(path for path in paths if not is_dicom_file(path))]
        images += [path.relative_to(folder).as_posix() for path in paths]
    return images


def _pattern(group: str | None) -> re.Pattern | None:
    try:
        return None if group is None else re.compile(group)
    except re.error as error:
        raise ValueError(f"data.group {group!r} is no regular expression ({error})") from None


def read_labelled(
    row: Mapping[str, Any],
    id: str,
    labels: Sequence[str],
    template: QuestionTemplate,
    modality: str,
    source: str,
    root: ImageRoot,
    group: re.Pattern | None,
) -> VQASample:
    """Make the question of one labelled image; ``group`` finds the patient in the file's path."""
    file, label, split = row.get("file"), row.get("label"), row.get("split")
    for column in ("file", "label"):
        if not row.get(column):
            raise BadRowError(f"has no {column}: fill it in")
    if split and split not in SPLITS:
        raise BadRowError(
            f"split is {shorten(split)}: use train, validation or test, or leave the column out"
        )
    entry, patient = with_settings(file, row.get("slice"), row.get("window")), row.get("patient")
    images = root.images(entry)
    if group is not None:
        match = group.search(file)
        if match is None:
            with keep_images(images):
                raise BadRowError(
                    f"file {shorten(file)} does not match data.group {group.pattern!r}: correct one of them"
                )
        patient = id_or_none(match[1] if group.groups else match[0])
    # Slices of one file are different questions: each has its own order of options.
    key = f"{file} {row['slice']}" if row.get("slice") else file
    options, letter = template.options(key, label, labels)
    return VQASample(
        id=id,
        images=images,
        question=template.question.format(modality=_MODALITY_NAMES.get(modality, modality)),
        options=tuple(options),
        answer=letter,
        modality=modality,
        question_type=template.question_type,
        source=source,
        image_group=patient or root.identity(file),
    )
