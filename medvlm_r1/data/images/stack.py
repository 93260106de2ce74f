"""Order slices in space, and tell the volumes (times, b-values, echoes) at one position apart."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from medvlm_r1.data.images.dicom_header import Slice
from medvlm_r1.data.images.notes import GAP, NUMBERED, VOLUMES, Note
from medvlm_r1.data.sample import BadRowError

if TYPE_CHECKING:
    from pydicom import Dataset

# What tells the volumes of one series apart, in this order: time, b-value, echo; else the image's number.
VOLUME_KEYS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "EchoTime",
    "EffectiveEchoTime",
    "TriggerTime",
    "AcquisitionNumber",
    "InstanceNumber",
)
SAME_DIRECTION = 1e-2  # largest difference of direction cosines within one stack, 0.6 degrees
_SAME_PLACE = 1e-2  # mm between two slices at one position
_WIDE = 1.5  # times the median distance of slices: a gap


class PlacedSlice(NamedTuple):
    """One slice and what places it: attributes of its file, or of its frame."""

    slice: Slice
    header: "Dataset"

    def value(self, name: str) -> Any:
        """Return an attribute; ``None`` if it is absent or empty."""
        value = self.header.get(name)
        return None if value is None or value == "" else value

    def number(self, name: str) -> float | None:
        """Return an attribute, or the first of its values, as a number."""
        value = self.value(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = next(iter(value), None)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Series:
    """One volume of a file or folder.

    Attributes:
        slices: in spatial order, or that of InstanceNumber where a position is missing, or of the frames.
        notes: files left out, gaps, other volumes.
        distance: median distance of neighbouring slices in mm; ``None`` without positions.
    """

    slices: list[Slice]
    notes: tuple[Note, ...] = ()
    distance: float | None = None


def order_slices(images: list[PlacedSlice], volume: int, notes: Sequence[Note] = ()) -> Series:
    """Sort the slices of one series, and take one volume of them.

    Args:
        notes: of the series; those about gaps and volumes are added.

    Raises:
        BadRowError: there is neither a position nor an InstanceNumber each, or not such a volume.
    """
    order = _positions(images)
    one_file = len({image.slice.path for image in images}) == 1
    if order is None or (one_file and len(set(map(len, order[1]))) > 1):
        if volume:
            raise BadRowError(
                f"has one volume, 0, not {volume}, since not every image has a position: set volume"
            )
        placed = sum(image.value("ImagePositionPatient") is not None for image in images)
        if placed and not one_file:
            notes = (*notes, Note(NUMBERED, f"{len(images) - placed} of {len(images)} have no position"))
        return Series([image.slice for image in _by_number(images)], tuple(notes))
    along, stacks = order
    chosen, more = _one_volume(images, stacks, volume)
    steps = np.diff(along[chosen])
    slices = [images[k].slice for k in chosen]
    # the lower median: of three slices left of four, one of two distances is a gap
    distance = float(np.sort(steps)[(len(steps) - 1) // 2]) if steps.size else None
    return Series(slices, (*notes, *more, *_gaps(steps, distance)), distance)


def _positions(images: Sequence[PlacedSlice]) -> tuple[Float[np.ndarray, "n"], list[list[int]]] | None:
    """Return the position of each image along the normal in mm, and the images at each position, in order.

    Returns:
        ``None`` where an image has no position, or their orientations differ.
    """
    axes = [image.value("ImageOrientationPatient") or () for image in images]
    places = [image.value("ImagePositionPatient") or () for image in images]
    if any(len(a) != 6 for a in axes) or any(len(p) != 3 for p in places):
        return None
    directions = np.array(axes, dtype=float)
    if not np.isfinite(directions).all() or np.ptp(directions, axis=0).max() >= 2 * SAME_DIRECTION:
        return None
    along = np.array(places, dtype=float) @ np.cross(directions[0, :3], directions[0, 3:])
    if not np.isfinite(along).all():
        return None
    stacks: list[list[int]] = []
    for k in np.argsort(along, kind="stable").tolist():
        if stacks and along[k] - along[stacks[-1][0]] < _SAME_PLACE:
            stacks[-1].append(k)
        else:
            stacks.append([k])
    return along, stacks


def _one_volume(
    images: Sequence[PlacedSlice], stacks: Sequence[Sequence[int]], volume: int
) -> tuple[list[int], list[Note]]:
    """Return the images of one volume, one at each position that has it."""
    counts = Counter(len(stack) for stack in stacks)
    volumes = max(counts)
    if len(counts) == 1:
        ordered = [sorted(stack, key=lambda k: _volume_order(images[k])) for stack in stacks]
        picked = [stack[volume] for stack in ordered if volume < len(stack)]
    else:  # positions lack a time: only an attribute that names the times can tell which
        volume_of = _volumes_by_value(images, stacks, volumes)
        picked = [k for stack in stacks for k in stack if volume_of[k] == volume]
    if volume >= volumes:
        held = f"has volumes 0 to {volumes - 1}" if volumes > 1 else "has one volume, 0"
        raise BadRowError(f"{held}, not {volume}: set volume")
    notes = []
    if volumes > 1:
        missing = len(stacks) - len(picked)
        lacks = f", which {missing} of {len(stacks)} positions lack" if missing else ""
        notes = [Note(VOLUMES, f"volume {volume} of {volumes}, from 0{lacks}")]
    return picked, notes


def _volume_order(image: PlacedSlice) -> tuple:
    values = [image.number(name) for name in VOLUME_KEYS]
    return (*((value is None, value or 0.0) for value in values), image.slice)


def _volumes_by_value(
    images: Sequence[PlacedSlice], stacks: Sequence[Sequence[int]], volumes: int
) -> list[int]:
    """Return the volume of each image by the first attribute with one value for each volume."""
    for name in VOLUME_KEYS[:-1]:
        numbers = [image.number(name) for image in images]
        values = [number for number in numbers if number is not None]
        if len(values) < len(images):
            continue
        levels = sorted(set(values))
        distinct = all(len({values[k] for k in stack}) == len(stack) for stack in stacks)
        if distinct and len(levels) == volumes:
            return [levels.index(value) for value in values]
    raise BadRowError(
        f"is a folder with {volumes} slices at some positions and fewer at others, and no attribute tells "
        "which belong together: remove the surplus files, or give each time a folder of its own"
    )


def _gaps(steps: Float[np.ndarray, "n"], distance: float | None) -> list[Note]:
    wide = np.flatnonzero(steps > _WIDE * distance) if distance else np.array([])
    if not wide.size:
        return []
    k = int(wide[0])
    more = f", and {wide.size - 1} more" if wide.size > 1 else ""
    return [Note(GAP, f"{steps[k]:g} mm between slices {k} and {k + 1}, elsewhere {distance:g} mm{more}")]


def _by_number(images: list[PlacedSlice]) -> list[PlacedSlice]:
    if len({image.slice.path for image in images}) == 1:
        return images
    if any(image.number("InstanceNumber") is None for image in images):
        raise BadRowError("is a folder whose files have neither one orientation nor an InstanceNumber each")
    return sorted(images, key=lambda image: image.number("InstanceNumber") or 0.0)
