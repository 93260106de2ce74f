"""A folder of labelled images, turned into multiple-choice questions.

The labels stand in a CSV file (``file,label[,split,patient,slice,window]``) or are the names of the
subfolders. Everything drawn for a question follows from (seed, file, slice): which wrong labels it offers,
their order, and where the gold one stands, each position being equally likely. So other images, and their
order, change no question.
"""

import functools
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import Any

from medvlm_r1.data.formats.question_file import QuestionFile, plain_stem
from medvlm_r1.data.formats.rows import read_csv
from medvlm_r1.data.images.resolve import ImageRoot, is_dicom_file, is_image, with_settings
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample

SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_COLUMNS = ("file", "label", "split", "patient", "slice", "window")
_WRITTEN = {"mri": "MRI", "ct": "CT", "xray": "X-ray", "oct": "OCT"}  # as a question spells a modality


@dataclass(frozen=True)
class Template:
    """How an image's label becomes a question.

    Attributes:
        question: the question; ``{modality}`` stands for the modality's name.
        question_type: of every question.
        n_options: options of a question, the gold one among them. Default: all labels.
        names: what the options call a label, where it is not the label itself.
        seed: of the options.

    Raises:
        ValueError: the question has another placeholder, or there are fewer than two options.
    """

    question: str = "Which disease is seen in this {modality} image?"
    question_type: str = "Disease Diagnosis"
    n_options: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            unknown = {name for _, name, _, _ in Formatter().parse(self.question) if name is not None}
        except ValueError as error:
            raise ValueError(f"data.template.question {self.question!r}: {error}") from None
        if unknown - {"modality"}:
            raise ValueError(
                f"data.template.question {self.question!r} has the placeholders {sorted(unknown)}: only "
                "{modality} can be filled in"
            )
        if self.n_options is not None and not 2 <= self.n_options <= len(LETTERS):
            raise ValueError(
                f"data.template.n_options is {self.n_options}: a question needs 2 to {len(LETTERS)}"
            )

    def check(self, labels: Sequence[str]) -> None:
        """Whether these labels, of a whole folder, can be asked for.

        Raises:
            ValueError: too few or too many labels, two of the same name, or a name for none of them.
        """
        for label in self.names:
            if label not in labels:
                near = get_close_matches(label, labels, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(
                    f"data.template.names: there is no label {label!r}: {hint}The labels are "
                    f"{', '.join(labels)}"
                )
        wanted = len(labels) if self.n_options is None else self.n_options
        if len(labels) < max(2, wanted):
            raise ValueError(f"{wanted} options need as many labels, but there are only {', '.join(labels)}")
        if wanted > len(LETTERS):
            raise ValueError(
                f"{len(labels)} labels are more than the {len(LETTERS)} options that a question can have: "
                "set data.template.n_options"
            )
        if len({self.names.get(label, label) for label in labels}) < len(labels):
            raise ValueError("data.template.names calls two labels the same: make each name different")

    def options(self, file: str, gold: str, labels: Sequence[str]) -> tuple[list[str], str]:
        """The options of one image's question, and the gold one's letter."""
        draw = random.Random(f"{self.seed} {file}")
        n = len(labels) if self.n_options is None else self.n_options
        # The place is drawn first and apart from the label: no label gathers at a letter.
        place = draw.randrange(n)
        others = draw.sample([label for label in labels if label != gold], n - 1)
        shown = [*others[:place], gold, *others[place:]]
        return [self.names.get(label, label) for label in shown], LETTERS[place]


class ImageFolder(QuestionFile):
    """One question for each labelled image of a folder.

    Args:
        folder: the images.
        modality: of all of them.
        labels: a CSV file with the columns ``file`` and ``label``, and optionally ``split`` (train,
            validation or test), ``patient``, and ``slice`` and ``window`` of DICOM and NIfTI files as in
            :class:`~medvlm_r1.data.formats.table.Columns`; its path starts from ``folder``. Default: the
            label of an image is the name of its subfolder; below that, a folder with DICOM files is one
            series and one image.
        template: what is asked.
        group: a regular expression that finds the patient in a file's path; its first group, or all that
            matches, names the patient. Default: the column ``patient``, else every image is on its own.
        name: what sample ids begin with. Default: the folder's name.
        delimiter: of the CSV file.
        encoding: of the CSV file.
        follow_links: take images outside the folder too; see :class:`ImageRoot`.
        volumes: how DICOM and NIfTI files are shown where a row does not say otherwise.
        window: ``n``, ``offset``, ``exclude``, ``seed``, ``on_bad_row``, ``check_images`` and ``workers``
            of :class:`QuestionFile`.

    Attributes:
        splits: train, validation or test by sample id; empty where the labels tell no split.

    Raises:
        BadRowError: a row or an image cannot be used, or the folder holds no labelled image.
        ValueError: the template does not fit the labels, or more questions are asked for than there are.
    """

    image_remedy = "replace the file, or correct its name"

    def __init__(
        self,
        folder: str | Path,
        modality: str,
        labels: str | None = None,
        template: Template | None = None,
        group: str | None = None,
        name: str | None = None,
        delimiter: str = ",",
        encoding: str = "utf-8-sig",
        follow_links: bool = False,
        volumes: Volumes | None = None,
        **window: Any,
    ) -> None:
        folder, template = Path(folder), template or Template()
        place, rows = find_labels(folder, labels, delimiter, encoding)
        known = sorted({row["label"] for row in rows if isinstance(row, dict) and row.get("label")})
        template.check(known)
        read = functools.partial(
            read_labelled,
            labels=known,
            template=template,
            modality=modality,
            source=plain_stem(folder.absolute()),
            root=ImageRoot(folder, follow_links, "data.folder", volumes),
            group=_pattern(group),
        )
        name = name or plain_stem(folder.absolute())
        super().__init__(place, enumerate(rows), read, name, **window)
        splits = {f"{name}-{i}": row.get("split") for i, row in enumerate(rows) if isinstance(row, dict)}
        self.splits = {s.id: SPLITS[splits[s.id]] for s in self if splits[s.id]}


def find_labels(
    folder: Path, labels: str | None, delimiter: str = ",", encoding: str = "utf-8-sig"
) -> tuple[Path, list[dict | BadRowError]]:
    """The labelled images of a folder, and the place that they are reported under.

    Raises:
        BadRowError: there is no such folder, no image in a subfolder, or no column of that name.
    """
    if not folder.is_dir():
        raise BadRowError(f"{folder} is no folder: check data.folder and data.test")
    if labels is None:
        rows = [
            {"file": file, "label": label.name}
            for label in sorted(folder.iterdir())
            if label.is_dir() and not label.name.startswith(".")
            for file in _images_below(label, folder)
        ]
        if not rows:
            raise BadRowError(
                f"{folder} has no subfolders with images: sort the images into one subfolder a label, or "
                "set data.labels to a CSV file in it with the columns file and label"
            )
        return folder, rows
    path = folder / labels
    rows = read_csv(path, delimiter, encoding)
    there = list(next((row for row in rows if isinstance(row, dict)), {}))
    for column in ("file", "label"):
        if there and column not in there:
            near = get_close_matches(column, [c for c in there if c not in _COLUMNS], n=1, cutoff=0.5)
            hint = f"rename {near[0]!r}; " if near else ""
            raise BadRowError(
                f"{path} has no column {column!r}: {hint}it has {', '.join(there)} (or data=table)"
            )
    for column in there:
        near = get_close_matches(column.lower(), _COLUMNS, n=1, cutoff=0.75)
        if column not in _COLUMNS and near and near[0] not in there:
            raise BadRowError(f"{path}: unknown column {column!r}: rename it to {near[0]!r}, or remove it")
    if any(isinstance(row, dict) and row.get("split") for row in rows):
        torn = BadRowError("has no split where other rows have one: fill it in")
        rows = [torn if isinstance(row, dict) and not row["split"] else row for row in rows]
    return path, rows


def _images_below(label: Path, folder: Path) -> list[str]:
    found = []
    for where, folders, files in os.walk(label):  # goes through no symbolic link
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images = [Path(where) / file for file in sorted(files) if not file.startswith(".")]
        images = [path for path in images if is_image(path)]
        if Path(where) != label and any(map(is_dicom_file, images)):
            images = [Path(where), *(path for path in images if not is_dicom_file(path))]
        found += [path.relative_to(folder).as_posix() for path in images]
    return found


def _pattern(group: str | None) -> re.Pattern | None:
    try:
        return None if group is None else re.compile(group)
    except re.error as error:
        raise ValueError(f"data.group {group!r} is no regular expression ({error})") from None


def read_labelled(
    row: Mapping[str, Any],
    id: str,
    labels: Sequence[str],
    template: Template,
    modality: str,
    source: str,
    root: ImageRoot,
    group: re.Pattern | None = None,
) -> VQASample:
    """The question of one labelled image.

    Raises:
        BadRowError: file or label is missing, the split is none, or the pattern finds no patient.
    """
    file, label, split = row.get("file"), row.get("label"), row.get("split")
    for column, value in (("file", file), ("label", label)):
        if not value:
            raise BadRowError(f"has no {column}: fill it in")
    if split and split not in SPLITS:
        raise BadRowError(f"split is {split!r}: use train, validation or test, or leave the column out")
    patient = row.get("patient")
    if group is not None:
        found = group.search(file)
        if found is None:
            raise BadRowError(
                f"file {file!r} does not match data.group {group.pattern!r}: correct one of them"
            )
        patient = found[1] if group.groups else found[0]
    entry = with_settings(file, row.get("slice"), row.get("window"))
    # Slices of one file are different questions: each has its own order of options.
    drawn = f"{file} {row['slice']}" if row.get("slice") else file
    options, letter = template.options(drawn, label, labels)
    return VQASample(
        id=id,
        images=root.images(entry),
        question=template.question.format(modality=_WRITTEN.get(modality, modality)),
        options=tuple(options),
        answer=letter,
        modality=modality,
        question_type=template.question_type,
        source=source,
        image_group=patient or root.identity(file),
    )
