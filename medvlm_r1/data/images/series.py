"""Which images of a DICOM file or folder are one series, and which files of the folder are left out."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlm_r1.data.images.dicom_header import (
    PRIVACY,
    Slice,
    check_privacy,
    is_dicom,
    merge_groups,
    pydicom,
    read_header,
)
from medvlm_r1.data.images.notes import LEFT_OUT, Note
from medvlm_r1.data.images.stack import SAME_DIRECTION, VOLUME_KEYS, PlacedSlice, Series, order_slices
from medvlm_r1.data.images.volume import check_size
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.shorten import shorten

if TYPE_CHECKING:
    from pydicom import Dataset

_SIZE = ("Rows", "Columns", "NumberOfFrames")
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient")
_FOLDER = ("SeriesInstanceUID", "SOPInstanceUID", "ImageType", *_GEOMETRY, *VOLUME_KEYS)
_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_NAMES = 3  # files named for each reason


def read_series(path: Path, allow_identifying: bool, volume: int = 0) -> Series:
    """Read which slices a file, or a folder with one series, holds.

    Slices are sorted by the position of their image along the normal of the slices (PS3.3 C.7.6.2.1.1), from
    negative to positive. Of several slices at each position (times, b-values, echoes), ``volume`` picks one.
    From a folder, these are left out, which a note says: subfolders, other formats, files without pixels,
    files with the SOPInstanceUID of an earlier one, and localizers, i.e. images whose ImageType says so, and
    images at right angles to most others.

    Raises:
        BadRowError: the path identifies a patient, or holds no image, or more than one series, size or
            orientation, or lacks the volume.
        Exception: OSError, and pydicom's errors of any type.
    """
    if path.is_dir():
        left_out = _LeftOut()
        images = _one_stack(list(_images_of(path, allow_identifying, left_out)), left_out)
        notes = [Note(LEFT_OUT, left_out.text)] if left_out.text else []
    else:
        header = read_header(path, (*PRIVACY, *_SIZE, *_FRAMES))
        check_privacy(header, allow_identifying)
        if "Rows" not in header:
            raise BadRowError("holds no image: give a file with pixels")
        images, notes = _frames(path, header), []
    return order_slices(images, volume, notes)


@dataclass
class _LeftOut:
    """Names of the files of a folder that are left out, by reason."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        self.names.setdefault(reason, []).append(path.name)

    def split(
        self, images: list[PlacedSlice], leave: Callable[[PlacedSlice], bool], reason: str
    ) -> list[PlacedSlice]:
        """Leave out some images, and return the others."""
        for image in filter(leave, images):
            self.add(reason, image.slice.path)
        return [image for image in images if not leave(image)]

    @property
    def text(self) -> str:
        """Number of files, and for each reason their number and the first of them."""
        parts = []
        for reason, names in self.names.items():
            shown = ", ".join(shorten(name, 60) for name in names[:_NAMES])
            parts.append(f"{len(names)} {reason} ({shown}{', ...' if len(names) > _NAMES else ''})")
        return f"{sum(map(len, self.names.values()))} left out: {', '.join(parts)}" if parts else ""


def _images_of(folder: Path, allow_identifying: bool, left_out: _LeftOut) -> Iterator[PlacedSlice]:
    """Yield the first frame of each DICOM image in a folder."""
    seen = set()
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists():
            raise BadRowError(f"cannot be decoded ({path.name} is a broken or circular link)")
        if not path.is_file():
            left_out.add("a folder" if path.is_dir() else "no regular file", path)
        elif not is_dicom(path):
            left_out.add("no DICOM file", path)
        else:
            try:
                header = read_header(path, (*PRIVACY, *_SIZE, *_FOLDER))
            except (BadRowError, OSError):
                raise
            except Exception as error:  # damage raises errors of any type, whose text may quote the header
                raise BadRowError(
                    f"cannot be decoded ({path.name} is damaged: {type(error).__name__})"
                ) from None
            if "Rows" not in header:
                left_out.add("without pixels", path)
                continue
            check_privacy(header, allow_identifying, f" in {path.name}")
            uid = header.get("SOPInstanceUID") or path
            if uid in seen:
                left_out.add("with the SOPInstanceUID of an earlier file", path)
                continue
            seen.add(uid)
            yield PlacedSlice(Slice(path, 0), header)


def _one_stack(images: list[PlacedSlice], left_out: _LeftOut) -> list[PlacedSlice]:
    """Return the images of a folder's one series, without its localizers."""
    if not images:
        why = f": {left_out.text}" if left_out.text else ""
        raise BadRowError(f"cannot be decoded (a folder without DICOM images{why})")
    if not all(map(_is_localizer, images)):
        images = left_out.split(images, _is_localizer, "a localizer by its ImageType")
    images = _without_orthogonal(images, left_out)
    count = len({image.value("SeriesInstanceUID") for image in images})
    if count > 1:
        raise BadRowError(f"is a folder with {count} series: give each a folder of its own")
    if len(images) == 1:
        return _frames(images[0].slice.path, read_header(images[0].slice.path, (*_SIZE, *_FRAMES, *_FOLDER)))
    if any(int(image.value("NumberOfFrames") or 1) > 1 for image in images):
        raise BadRowError("is a folder with a multi-frame file and other files: give the path of that file")
    sizes = Counter((int(image.value("Rows") or 0), int(image.value("Columns") or 0)) for image in images)
    if len(sizes) > 1:
        first, second = (f"{rows} x {columns} ({n} files)" for (rows, columns), n in sizes.most_common(2))
        raise BadRowError(
            f"is a folder with slices of {len(sizes)} sizes, {first} and {second}: give each a folder of its "
            "own"
        )
    rows, columns = next(iter(sizes))
    check_size(rows, columns, len(images))
    return images


def _is_localizer(image: PlacedSlice) -> bool:
    kind = image.value("ImageType") or ()
    return "LOCALIZER" in {str(word).upper() for word in ([kind] if isinstance(kind, str) else kind)}


def _without_orthogonal(images: list[PlacedSlice], left_out: _LeftOut) -> list[PlacedSlice]:
    """Leave out images at right angles to most others; refuse other differences of orientation."""
    axes = [image.value("ImageOrientationPatient") or () for image in images]
    if any(len(a) != 6 for a in axes):
        return images
    directions = np.array(axes, dtype=float)
    kinds: list[np.ndarray] = []  # one direction of each orientation
    which = []
    for direction in directions:
        same = [k for k, other in enumerate(kinds) if np.abs(other - direction).max() < SAME_DIRECTION]
        which.append(same[0] if same else len(kinds))
        if not same:
            kinds.append(direction)
    main, count = Counter(which).most_common(1)[0]
    if count == len(images):
        return images
    normals = [np.cross(kind[:3], kind[3:]) for kind in kinds]
    right_angles = all(abs(n @ normals[main]) < SAME_DIRECTION for k, n in enumerate(normals) if k != main)
    if not right_angles or 2 * count <= len(images):
        raise BadRowError(
            f"is a folder with slices of {len(kinds)} orientations: give each a folder of its own"
        )
    others = {image.slice for image, kind in zip(images, which, strict=True) if kind != main}
    reason = "at right angles to the others, like a localizer"
    return left_out.split(images, lambda image: image.slice in others, reason)


def _frames(path: Path, header: "Dataset") -> list[PlacedSlice]:
    """Return the frames of a file; those of an enhanced image have positions and times of their own."""
    frames = int(header.get("NumberOfFrames") or 1)
    check_size(int(header.get("Rows") or 0), int(header.get("Columns") or 0), frames)
    if len(header.get("PerFrameFunctionalGroupsSequence") or ()) != frames:
        return [PlacedSlice(Slice(path, frame), header) for frame in range(frames)]
    shared, each = (header.get(name) or [] for name in _FRAMES)
    for name in _FRAMES:  # or every copy of the header would visit all frames
        header.pop(name, None)
    for groups in shared[:1]:
        merge_groups(header, groups)
    images = []
    for frame, groups in enumerate(each):
        merged = pydicom().Dataset()
        merged.update(header)
        merge_groups(merged, groups)
        images.append(PlacedSlice(Slice(path, frame), merged))
    return images
