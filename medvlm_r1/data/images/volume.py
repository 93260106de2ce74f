"""Slices, windows and grey values of DICOM and NIfTI files.

A BadRowError of these functions and of the decoders lacks the file's name, which :func:`errors_named` adds.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Real
from PIL import Image

from medvlm_r1.data.images.paths import missing_image
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.places import pip_install
from medvlm_r1.runs.shorten import shorten

MAX_SLICE = 2**26  # pixels per slice, 8192 x 8192; the largest mammograms have half as many
MAX_VOLUME = 2**29  # voxels per file or series, 2048 slices of 512 x 512
MONTAGE = 9  # slices of a montage, 3 x 3: each still has about 200 pixels a side for the models here
PLANES = ("axial", "coronal", "sagittal")

# An index from 0; (k, n): the middle slice of the k-th of n equal parts; or a grid of slices.
Pick = int | tuple[int, int] | Literal["montage"]
MIDDLE: Pick = (0, 1)

# Centre and width in HU: Radiopaedia, "Windowing (CT)": lungs, spine bone, head brain, abdomen soft
# tissues and mediastinum.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "bone": (400, 1800),
    "brain": (40, 80),
    "abdomen": (50, 400),
    "mediastinum": (50, 350),
}


@dataclass(frozen=True)
class Volumes:
    """How DICOM and NIfTI files, and images of several frames, are shown where a row does not set it.

    Attributes:
        frame: of other images (TIFF, GIF, WebP, APNG): index of the frame, from 0.
        slices: ``middle``; ``montage``, nine evenly spaced slices in one image; a number of evenly spaced
            slices, one image each; or a list of indices from 0, one image each.
        window: DICOM: ``None`` is the file's own window; ``lung``, ``bone``, ``brain``, ``abdomen`` or
            ``mediastinum``, for CT only; or centre and width in rescaled units (HU in CT).
        allow_identifying: read DICOM files that identify a patient or have burned-in text.
        plane: NIfTI: ``axial``, ``coronal`` or ``sagittal``.
        volume: of several times, b-values or echoes, the index from 0: in the fourth dimension of NIfTI; of
            DICOM in the order of time, b-value, echo and InstanceNumber.
        range: NIfTI: the values shown black and white, in the file's units.
        percentiles: NIfTI, instead of ``range``: the same in percent of the volume's voxels. With neither,
            black is the volume's minimum and white its maximum.

    Raises:
        ValueError: a setting is invalid.
    """

    slices: str | int | Sequence[int] = "middle"
    window: str | Sequence[float] | None = None
    allow_identifying: bool = False
    plane: str = "axial"
    volume: int = 0
    range: Sequence[float] | None = None
    percentiles: Sequence[float] | None = None
    frame: int = 0

    def __post_init__(self) -> None:
        for key in ("slices", "window", "range", "percentiles"):
            value = getattr(self, key)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, key, tuple(value))  # Hydra's lists are not hashable
        picks(self.slices)
        window = self.window
        if window is not None and not (isinstance(window, str) and window in CT_WINDOWS):
            named = ", ".join(CT_WINDOWS)
            if not _pair(window) or window[1] <= 0:
                raise ValueError(
                    f"window is {shorten(window)}: use {named}, or [centre, width] with a width above 0"
                )
        if not isinstance(self.allow_identifying, bool):
            raise ValueError(f"allow_identifying is {shorten(self.allow_identifying)}: use true or false")
        if self.plane not in PLANES:
            raise ValueError(f"plane is {shorten(self.plane)}: use {', '.join(PLANES)}")
        for key in ("volume", "frame"):
            if not _index(getattr(self, key)):
                raise ValueError(f"{key} is {shorten(getattr(self, key))}: give an index from 0")
        for key in ("range", "percentiles"):
            pair = getattr(self, key)
            if pair is not None and not (_pair(pair) and pair[0] < pair[1]):
                raise ValueError(f"{key} is {shorten(pair)}: give [low, high]")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles is {shorten(self.percentiles)}: give numbers between 0 and 100")
        if self.range and self.percentiles:
            raise ValueError("range and percentiles are both set: set one of them")


def _index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _pair(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in value)
    )


def picks(slices: str | int | Sequence[int]) -> tuple[Pick, ...]:
    """Convert :attr:`Volumes.slices` to one pick per image.

    Raises:
        ValueError: ``slices`` is invalid.
    """
    if slices == "middle":
        return (MIDDLE,)
    if slices == "montage":
        return ("montage",)
    if _index(slices) and slices > 0:
        return tuple((k, slices) for k in range(slices))
    if isinstance(slices, list | tuple) and slices and all(map(_index, slices)):
        return tuple(slices)
    raise ValueError(
        f"slices is {shorten(slices)}: use middle, montage, a number of slices, or a list of indices"
    )


def indices(pick: Pick, depth: int) -> list[int]:
    """Return the slice indices of one image, from a file with ``depth`` slices.

    The k-th of n evenly spaced slices is the middle of the k-th of n equal parts; so the first and last
    slices, which often show nothing, are not used.
    """
    if pick == "montage":
        count = min(MONTAGE, depth)
        return [(2 * k + 1) * depth // (2 * count) for k in range(count)]
    if isinstance(pick, int):
        if pick >= depth:
            raise BadRowError(f"has slices 0 to {depth - 1}, not {pick}: give another index")
        return [pick]
    part, count = pick
    if count > depth:
        raise BadRowError(f"has {depth} slices, fewer than {count}: set slices for this row")
    return [(2 * part + 1) * depth // (2 * count)]


def label(path: str, pick: Pick, *settings: str) -> str:
    """Return a stable image name: the path, and the settings that differ from the default."""
    fixed = {MIDDLE: [], "montage": ["montage"]}
    part = f"{pick[0] + 1}of{pick[1]}" if isinstance(pick, tuple) else pick
    parts = [*fixed.get(pick, [f"slice={part}"]), *settings]
    return f"{path}#{'&'.join(parts)}" if parts else path


def grey(values: Real[np.ndarray, "height width"], low: float, high: float) -> Image.Image:
    """Scale to 8 bits: values up to ``low`` are 0, from ``high`` on 255, linear in between, rounded.

    NaN is black; if ``low`` equals ``high``, everything is black.
    """
    finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    scaled = (finite - low) / ((high - low) or 1.0)
    return Image.fromarray((scaled.clip(0, 1) * 255).round().astype(np.uint8))


def in_proportion(image: Image.Image, row_spacing: float, column_spacing: float) -> Image.Image:
    """Resample an image to the finer of its spacings (mm between rows, and between columns)."""
    ratio = row_spacing / column_spacing if row_spacing > 0 and column_spacing > 0 else 1.0
    if abs(ratio - 1) < 0.01:
        return image
    width, height = image.size
    size = (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)
    if size[0] * size[1] > MAX_SLICE:
        raise BadRowError(f"has pixels of {row_spacing:g} x {column_spacing:g} mm: correct its spacing")
    return image.resize(size, Image.Resampling.BILINEAR)


def montage(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange images in a grid, row by row, as square as possible; empty cells are black."""
    columns = int(np.ceil(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    width, height = (max(side) for side in zip(*(p.size for p in images), strict=True))
    sheet = Image.new("RGB", (columns * width, rows * height))
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    return sheet


def check_size(height: int, width: int, depth: int) -> None:
    """Check the size in the header, before a large image fills the memory."""
    if min(height, width, depth) < 1:
        raise BadRowError(f"has {height} x {width} pixels and {depth} slices: give a file with an image")
    if height * width > MAX_SLICE or height * width * depth > MAX_VOLUME:
        raise BadRowError(
            f"declares {height} x {width} pixels and {depth} slices, above the limit of {MAX_SLICE} pixels a "
            f"slice and {MAX_VOLUME} in all: crop or split it"
        )


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn every error of the block into a BadRowError that names the file but quotes none of its header."""
    try:
        yield
    except BadRowError as error:
        raise BadRowError(f"image {path} {error}") from None
    except FileNotFoundError:
        raise BadRowError(missing_image(path)) from None
    except Exception as error:  # damage raises errors of any type, whose text may quote the header
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise BadRowError(f"image {path} cannot be decoded (damaged: {reason})") from None


def require(package: str, extra: str) -> None:
    """Raise a ValueError that names the extra to install, if an optional package is missing."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"the data has {extra.upper()} files: {pip_install(extra)}")
