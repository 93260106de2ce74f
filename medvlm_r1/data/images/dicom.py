"""Decode DICOM images as a workstation shows them by default: rescaled and windowed.

Overlay planes, presentation states and colour profiles are not applied.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer, Real
from PIL import Image, ImageOps

from medvlm_r1.data.images.dicom_header import (
    Slice,
    frame_header,
    has_preamble,
    in_hounsfield_units,
    measurements,
    pydicom,
    spacing,
    with_syntax,
)
from medvlm_r1.data.images.notes import with_notes
from medvlm_r1.data.images.series import read_series
from medvlm_r1.data.images.volume import (
    CT_WINDOWS,
    MAX_SLICE,
    MIDDLE,
    Pick,
    errors_named,
    grey,
    in_proportion,
    indices,
    label,
    montage,
)
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.places import pip_install

if TYPE_CHECKING:
    from pydicom import Dataset

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class DicomImage:
    """One image of a DICOM file, or of a folder that holds one series.

    Attributes:
        path: the file or folder.
        pick: the slice, or a montage of several.
        window, allow_identifying, volume: see :class:`~medvlm_r1.data.images.volume.Volumes`.
    """

    path: Path
    pick: Pick = MIDDLE
    window: str | tuple[float, float] | None = None
    allow_identifying: bool = False
    volume: int = 0

    @property
    def name(self) -> str:
        """The path, and the settings that differ from the default; nothing of the header."""
        window = self.window if self.window is None or isinstance(self.window, str) else list(self.window)
        settings = [f"window={window}"] if window is not None else []
        settings += [f"volume={self.volume}"] if self.volume else []
        return label(self.path.as_posix(), self.pick, *settings)

    def load(self) -> Image.Image:
        """Decode as RGB.

        Applies the Modality LUT or rescale (PS3.3 C.11.1), then the chosen window, or the file's first VOI
        LUT or window (PS3.3 C.11.2), or else the range from the image's minimum to its maximum; padding
        (PS3.3 C.7.5.1.1.2) stays black. Inverts MONOCHROME1 last (PS3.3 C.7.6.3.1.2). Resamples non-square
        pixels to the finer spacing.

        Raises:
            BadRowError: the file is missing, damaged or too large, identifies a patient, lacks the slice, or
                lacks the Hounsfield units that the window needs.
        """
        pydicom()
        with errors_named(self.path):
            series = read_series(self.path, self.allow_identifying, self.volume)
            shown = [_render(series.slices[i], self.window) for i in self._indices(series.slices)]
        return with_notes(montage(shown) if self.pick == "montage" else shown[0], series.notes)

    def facts(self) -> dict[str, Any]:
        """Return what the header says of the (first) slice that is shown; see :func:`measurements`.

        Raises:
            BadRowError: as :meth:`load`.
        """
        pydicom()
        with errors_named(self.path):
            series = read_series(self.path, self.allow_identifying, self.volume)
            facts = measurements(frame_header(series.slices[self._indices(series.slices)[0]]))
        return facts if series.distance is None else facts | {"slice_distance_mm": series.distance}

    def _indices(self, slices: Sequence[Slice]) -> list[int]:
        return indices(self.pick, len(slices))


def _render(place: Slice, window: str | tuple[float, float] | None) -> Image.Image:
    header = frame_header(place)
    values = _stored(place, header)
    if header.PhotometricInterpretation in _MONOCHROME:
        image = _monochrome(values, header, window)
    elif window is not None:
        raise BadRowError(f"is a colour image, which has no window: leave out window={window}")
    else:
        image = _colour(values, header)
    return in_proportion(image.convert("RGB"), *spacing(header))


def _stored(place: Slice, header: "Dataset") -> Integer[np.ndarray, "height width *channels"]:
    """Return the stored values of one frame; colours other than palettes as RGB."""
    library, syntax = pydicom(), header.file_meta.TransferSyntaxUID
    try:
        decoder = library.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise BadRowError(
            f"is compressed as {syntax.name}, which cannot be read: convert it to Explicit VR Little Endian"
        ) from None
    if not decoder.is_available:
        raise BadRowError(f"is compressed as {syntax.name}: {pip_install('dicom')}")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1 and not syntax.is_encapsulated and has_preamble(place.path):
        return library.pixels.pixel_array(place.path, index=place.frame)  # reads only that frame
    dataset = with_syntax(library.dcmread(place.path, force=True))
    if syntax.is_encapsulated:
        _check_stream(library.encaps.get_frame(dataset.PixelData, place.frame, number_of_frames=frames))
    return library.pixels.pixel_array(dataset, index=place.frame)


def _check_stream(frame: bytes) -> None:
    """Check the size in the header of a JPEG or JPEG 2000 stream, for which its decoder allocates memory."""
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = MAX_SLICE  # Pillow's limit is higher than ours
    except (OSError, SyntaxError, ValueError):
        return  # RLE and JPEG-LS, which Pillow cannot read; the decoder detects damage
    if width * height > MAX_SLICE:
        raise BadRowError(f"holds a compressed image above the limit of {MAX_SLICE} pixels: crop it")


def _monochrome(
    stored: Integer[np.ndarray, "height width"], header: "Dataset", window: str | tuple[float, float] | None
) -> Image.Image:
    values, padded = pydicom().pixels.apply_modality_lut(stored, header), _padding(stored, header)
    function = str(header.get("VOILUTFunction") or "LINEAR")
    if window is not None:
        if isinstance(window, str) and not in_hounsfield_units(header):
            raise BadRowError(
                f"is no CT in Hounsfield units, which window={window} needs: leave it out to use the "
                "file's own, or give [centre, width]"
            )
        centre, width = CT_WINDOWS[window] if isinstance(window, str) else window
        image = windowed(values, centre, width)
    elif header.get("VOILUTSequence"):
        image = _through_table(values, header)
    elif "WindowCenter" in header and "WindowWidth" in header:
        centre, width = (
            float(np.atleast_1d(header[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth")
        )
        image = windowed(values, centre, width, function)
    else:
        valid = values[~padded & np.isfinite(values)]
        low, high = (float(valid.min()), float(valid.max())) if valid.size else (0.0, 0.0)
        image = grey(values, low, high)
    if header.PhotometricInterpretation == "MONOCHROME1":
        image = ImageOps.invert(image)
    return Image.fromarray(np.where(padded, 0, np.asarray(image)).astype(np.uint8))


def windowed(
    values: Real[np.ndarray, "height width"], centre: float, width: float, function: str = "LINEAR"
) -> Image.Image:
    """Apply a window to rescaled values, with 8 bits as the result.

    Args:
        values: in HU, or another unit that the file rescales to.
        centre, width: in the same unit.
        function: ``LINEAR`` (PS3.3 C.11.2.1.2.1), ``LINEAR_EXACT`` or ``SIGMOID`` (PS3.3 C.11.2.1.3).
    """
    library = pydicom()
    if function.upper() not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise BadRowError("has a VOILUTFunction that DICOM does not define: set window for this row")
    if width <= 0 or (function.upper() == "LINEAR" and width < 1):
        raise BadRowError(f"has a window of width {width:g}: set window for this row")
    # A header of our own, for 8 bits: with the file's header, the result would have the range of the stored
    # values, which is reversed for a negative slope.
    view = library.Dataset()
    view.PhotometricInterpretation, view.VOILUTFunction = "MONOCHROME2", function.upper()
    view.BitsStored, view.PixelRepresentation = 8, 0
    view.add_new("WindowCenter", "FD", centre)
    view.add_new("WindowWidth", "FD", width)
    with np.errstate(over="ignore"):  # the sigmoid's exponential; its limit is correct
        return grey(library.pixels.apply_windowing(values, view), 0, 255)


def _through_table(values: Real[np.ndarray, "height width"], header: "Dataset") -> Image.Image:
    """Apply the first table of the VOI LUT Sequence (PS3.3 C.11.2.1.1)."""
    item, view = header.VOILUTSequence[0], pydicom().Dataset()
    count, first, bits = item.LUTDescriptor
    count = count or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # signed like the rescaled values, but read as unsigned
    # With 16-bit entries, apply_voi_lut also uses 16-bit indices; 8-bit ones would wrap after 256 entries. It
    # requires integers, and none below the first.
    item.LUTDescriptor = [count if count < 2**16 else 0, first, 16]
    view.file_meta, view.VOILUTSequence = header.file_meta, [item]
    entries = np.rint(values).astype(np.int64).clip(first, first + count - 1)
    return grey(pydicom().pixels.apply_voi_lut(entries, view), 0, 2**bits - 1)


def _padding(stored: Integer[np.ndarray, "height width"], header: "Dataset") -> np.ndarray:
    """Return the mask of padding pixels, outside the scanned region."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [value, header.get("PixelPaddingRangeLimit", value)]
    if stored.dtype.kind == "i":  # written as unsigned by some
        ends = [end - 2 ** (8 * stored.itemsize) if end > np.iinfo(stored.dtype).max else end for end in ends]
    low, high = sorted(ends)
    return (stored >= low) & (stored <= high)


def _colour(values: Integer[np.ndarray, "height width *channels"], header: "Dataset") -> Image.Image:
    bits = header.BitsStored
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = pydicom().pixels.apply_color_lut(values, header)
        bits = header.RedPaletteColorLookupTableDescriptor[2]
    if values.ndim != 3 or values.shape[2] != 3:
        raise BadRowError("has a PhotometricInterpretation that cannot be shown: convert it to RGB")
    return Image.fromarray((values / (2**bits - 1) * 255).round().clip(0, 255).astype(np.uint8))
