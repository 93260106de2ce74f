"""Question files as they are: every row that can be read, and a line for every fault of the others."""

from collections.abc import Sequence
from pathlib import Path

from medvlm_r1.data.formats.mcq_row import read_row
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import BadRowError, VQASample

UNKNOWN = "unknown"


def read_files(
    paths: Sequence[Path], images: Path | None = None, modality: str | None = None
) -> tuple[list[VQASample], list[str]]:
    """The usable questions of some files, and a line for each fault, naming file and row.

    A row of no known modality is a fault too, yet it is kept, under ``unknown``; one whose picture is not
    on disk is kept as well, and is a fault where other pictures of its file are there.

    Args:
        paths: files in the papers' schema.
        images: folder that image paths start from. Default: each file's own.
        modality: of every row, for files whose rows name none.

    Raises:
        BadRowError: a file cannot be read at all.
    """
    samples, faults = [], []
    for path in map(Path, paths):
        root = ImageRoot(path.parent if images is None else images, follow_links=True)
        mine, nameless = [], 0
        for number, row in enumerate(read_json(path)):
            name = f"{path.stem}-{number}"
            given = modality
            if given is None and isinstance(row, dict) and row.get("subset") is None:
                given, nameless = UNKNOWN, nameless + 1
            try:
                mine.append((number, read_row(row, name, path.stem, root, given)))
            except BadRowError as error:
                faults.append(f"{path} row {number}: {error}")
                if "is no known modality" in str(error):
                    mine.append((number, read_row(row, name, path.stem, root, UNKNOWN)))
        if nameless:
            faults.append(f"{path}: {nameless} rows name no modality (no subset)")
        missing = [(n, h.name) for n, s in mine for h in s.images if not h.path.exists()]
        if len(missing) < sum(len(s.images) for _, s in mine):
            faults += [f"{path} row {n}: image {image} does not exist" for n, image in missing]
        samples += [sample for _, sample in mine]
    return samples, faults
