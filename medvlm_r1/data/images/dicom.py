"""DICOM pictures as a workstation would first show them: rescaled, windowed, black as black.

Overlay planes, presentation states and colour profiles are not applied.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, Real
from PIL import Image, ImageOps

from medvlm_r1.data.images.dicom_header import (
    Slice,
    frame_header,
    in_hounsfield_units,
    pydicom,
    slices_of,
    spacing,
)
from medvlm_r1.data.images.volume import (
    CT_WINDOWS,
    MAX_SLICE,
    MIDDLE,
    Pick,
    grey,
    in_proportion,
    indices,
    label,
    montage,
)
from medvlm_r1.data.sample import BadRowError

if TYPE_CHECKING:
    from pydicom import Dataset

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class DicomImage:
    """One picture of a DICOM file, or of a folder that holds one series.

    Attributes:
        path: the file or folder.
        pick: the slice that is shown, or several as a montage.
        window, allow_identifying: see :class:`~medvlm_r1.data.images.volume.Volumes`.
    """

    path: Path
    pick: Pick = MIDDLE
    window: str | tuple[float, float] | None = None
    allow_identifying: bool = False

    @property
    def name(self) -> str:
        """The path as given, and what differs from the default; nothing of the header."""
        window = self.window if self.window is None or isinstance(self.window, str) else list(self.window)
        return label(self.path.as_posix(), self.pick, *([] if window is None else [f"window={window}"]))

    def load(self) -> Image.Image:
        """Decode as RGB.

        Stored values go through the Modality LUT or rescale (PS3.3 C.11.1), then through the chosen window,
        or the file's own first VOI LUT or window (PS3.3 C.11.2), or else from the picture's own smallest to
        its own largest value, leaving padding (PS3.3 C.7.5.1.1.2) black. MONOCHROME1 is inverted at last
        (PS3.3 C.7.6.3.1.2). Pixels that are not square are stretched to the finer spacing.

        Raises:
            BadRowError: the file is missing, damaged, too large, identifies a patient, has not the slice
                asked for or has no Hounsfield units for a window that needs them.
        """
        pydicom()
        try:
            slices = slices_of(self.path, self.allow_identifying)
            shown = [_picture(slices[i], self.window) for i in indices(self.pick, len(slices))]
        except BadRowError as error:
            raise BadRowError(f"image {self.path} {error}") from None
        except FileNotFoundError:
            raise BadRowError(f"image {self.path} does not exist") from None
        except Exception as error:  # damage shows as errors of any type, whose text may quote the header
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise BadRowError(f"image {self.path} cannot be decoded (damaged: {reason})") from None
        return montage(shown) if self.pick == "montage" else shown[0]


def _picture(place: Slice, window: str | tuple[float, float] | None) -> Image.Image:
    header = frame_header(place)
    values = _stored(place, header)
    if header.PhotometricInterpretation in _MONOCHROME:
        picture = _monochrome(values, header, window)
    elif window is not None:
        raise BadRowError(f"is a colour picture, which has no window: leave out window={window}")
    else:
        picture = _colour(values, header)
    return in_proportion(picture.convert("RGB"), *spacing(header))


def _stored(place: Slice, header: "Dataset") -> Integer[np.ndarray, "height width *channels"]:
    """The values of one frame as stored; colours other than palettes as RGB."""
    library, syntax = pydicom(), header.file_meta.TransferSyntaxUID
    try:
        decoder = library.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise BadRowError(
            f"is compressed as {syntax.name}, which cannot be read: convert it to Explicit VR Little Endian"
        ) from None
    if not decoder.is_available:
        raise BadRowError(f"is compressed as {syntax.name}: pip install 'medvlm_r1[dicom]'")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1 and not syntax.is_encapsulated:
        return library.pixels.pixel_array(place.path, index=place.frame)  # reads that frame alone
    whole = library.dcmread(place.path)
    if syntax.is_encapsulated:
        _check_stream(library.encaps.get_frame(whole.PixelData, place.frame, number_of_frames=frames))
    return library.pixels.pixel_array(whole, index=place.frame)


def _check_stream(frame: bytes) -> None:
    """A JPEG or JPEG 2000 stream states a size of its own, for which its decoder would make room.

    Raises:
        BadRowError: it is above the limit; the message lacks the file.
    """
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        width = height = MAX_SLICE  # Pillow's limit is above ours
    except (OSError, SyntaxError, ValueError):
        return  # RLE and JPEG-LS, which Pillow does not know; damage is for the decoder to find
    if width * height > MAX_SLICE:
        raise BadRowError(f"holds a compressed picture above the limit of {MAX_SLICE} pixels: crop it")


def _monochrome(
    stored: Integer[np.ndarray, "height width"],
    header: "Dataset",
    window: str | tuple[float, float] | None,
) -> Image.Image:
    values = pydicom().pixels.apply_modality_lut(stored, header)
    function = str(header.get("VOILUTFunction") or "LINEAR")
    if window is not None:
        if isinstance(window, str) and not in_hounsfield_units(header):
            raise BadRowError(
                f"is no CT in Hounsfield units, which window={window} needs: leave it out for the file's "
                "own, or give [centre, width]"
            )
        centre, width = CT_WINDOWS[window] if isinstance(window, str) else window
        picture = windowed(values, centre, width)
    elif header.get("VOILUTSequence"):
        picture = _through_table(values, header)
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        centre, width = (
            float(np.atleast_1d(header[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth")
        )
        picture = windowed(values, centre, width, function)
    else:
        padded = _padding(stored, header)
        known = values[~padded & np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        picture = grey(np.where(padded, low, values), low, high)
        if header.PhotometricInterpretation == "MONOCHROME1":
            return Image.fromarray(np.where(padded, 0, np.asarray(ImageOps.invert(picture))))
    return ImageOps.invert(picture) if header.PhotometricInterpretation == "MONOCHROME1" else picture


def windowed(
    values: Real[np.ndarray, "height width"], centre: float, width: float, function: str = "LINEAR"
) -> Image.Image:
    """Eight bits of rescaled values.

    Args:
        values: in HU, or in whatever unit the file rescales to.
        centre, width: in the same unit.
        function: ``LINEAR`` (PS3.3 C.11.2.1.2.1), ``LINEAR_EXACT`` or ``SIGMOID`` (PS3.3 C.11.2.1.3).

    Raises:
        BadRowError: no such function, or a width that it does not allow; the message lacks the file.
    """
    library = pydicom()
    if function.upper() not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise BadRowError("has a VOILUTFunction that DICOM does not define: set window for this row")
    if width <= 0 or (function.upper() == "LINEAR" and width < 1):
        raise BadRowError(f"has a window of width {width:g}: set window for this row")
    # Into eight bits at once. Asked for the file's own header, the function would answer on the scale of
    # its stored values, which runs backwards where the slope is negative.
    view = library.Dataset()
    view.PhotometricInterpretation, view.VOILUTFunction = "MONOCHROME2", function.upper()
    view.BitsStored, view.PixelRepresentation = 8, 0
    view.add_new("WindowCenter", "FD", centre)
    view.add_new("WindowWidth", "FD", width)
    with np.errstate(over="ignore"):  # the sigmoid's exponential, whose limit is right
        return grey(library.pixels.apply_windowing(values, view), 0, 255)


def _through_table(values: Real[np.ndarray, "height width"], header: "Dataset") -> Image.Image:
    """The first table of the VOI LUT Sequence (PS3.3 C.11.2.1.1)."""
    item, view = header.VOILUTSequence[0], pydicom().Dataset()
    count, first, bits = item.LUTDescriptor
    count = count or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # signed where rescaled values are, though read as unsigned
    # Told that entries have 16 bits, the function counts them in 16 bits too: in 8 it would begin anew
    # behind the 256th. It wants whole numbers, and none below the first.
    item.LUTDescriptor = [count if count < 2**16 else 0, first, 16]
    view.file_meta, view.VOILUTSequence = header.file_meta, [item]
    whole = np.rint(values).astype(np.int64).clip(first, first + count - 1)
    return grey(pydicom().pixels.apply_voi_lut(whole, view), 0, 2**bits - 1)


def _padding(stored: Integer[np.ndarray, "height width"], header: "Dataset") -> np.ndarray:
    """Where the scanner had nothing to measure."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _colour(values: Integer[np.ndarray, "height width *channels"], header: "Dataset") -> Image.Image:
    bits = header.BitsStored
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = pydicom().pixels.apply_color_lut(values, header)
        bits = header.RedPaletteColorLookupTableDescriptor[2]
    if values.ndim != 3 or values.shape[2] != 3:
        raise BadRowError("has a PhotometricInterpretation that cannot be shown: convert it to RGB")
    return Image.fromarray((values / (2**bits - 1) * 255).round().clip(0, 255).astype(np.uint8))
