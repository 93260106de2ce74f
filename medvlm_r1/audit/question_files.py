"""Read question files leniently: all usable rows, and one line per fault."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medvlm_r1.audit.fingerprints import exists
from medvlm_r1.data.formats.mcq_row import UnknownModalityError, read_row
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.formats.values import is_missing
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError, ImageHandle, VQASample

UNKNOWN = "unknown"


class AuditedRows(NamedTuple):
    """The rows of some question files."""

    samples: list[VQASample]  # of the usable rows
    faults: list[str]  # one line per fault, with file and row
    refused: list[
        tuple[ImageHandle, ...]
    ]  # images of each row that cannot be used; none if they cannot be read


def read_files(
    paths: Sequence[Path],
    images: Path | None = None,
    modality: str | None = None,
    volumes: Volumes | None = None,
) -> AuditedRows:
    """Read the rows of some files.

    A row of unknown modality is a fault but still returned, with modality ``unknown``. A row whose image does
    not exist is returned too, and is a fault if other images of the same question file exist.

    Args:
        paths: files in the papers' schema.
        images: folder of the image paths. Default: the folder of each file.
        modality: modality of all rows, for files without one.
        volumes: how DICOM and NIfTI files are shown where a row does not set it.

    Raises:
        BadRowError: a file cannot be read at all.
    """
    samples, faults, refused = [], [], []
    for path in map(Path, paths):
        root = ImageRoot(path.parent if images is None else images, follow_links=True, volumes=volumes)
        rows, nameless = [], 0
        for number, row in enumerate(read_json(path)):
            name = f"{path.stem}-{number}"
            row_modality = modality
            if row_modality is None and isinstance(row, dict) and is_missing(row.get("subset")):
                row_modality, nameless = UNKNOWN, nameless + 1
            try:
                try:
                    sample = read_row(row, name, path.stem, root, row_modality)
                except UnknownModalityError as error:
                    sample = read_row(row, name, path.stem, root, UNKNOWN)
                    faults.append(f"{path} row {number}: {error}")
                rows.append((number, sample))
            except BadRowError as error:
                faults.append(f"{path} row {number}: {error}")
                refused.append(error.images)
        if nameless:
            faults.append(f"{path}: {nameless} rows name no modality (no subset)")
        missing = [(n, h.name) for n, s in rows for h in s.images if not exists(h)]
        if len(missing) < sum(len(s.images) for _, s in rows):
            faults += [f"{path} row {n}: image {image} does not exist" for n, image in missing]
        samples += [sample for _, sample in rows]
    return AuditedRows(samples, faults, refused)
