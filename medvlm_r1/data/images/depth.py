"""Read the samples of PNG and TIFF files at their own depth.

Pillow opens most depths but keeps the high byte alone of 16-bit colours, ignores WhiteIsZero above 8 bits,
reads compressed big-endian signed or float samples in the wrong order, and takes unsigned 32-bit samples for
signed.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Real
from PIL import ImageOps, TiffImagePlugin
from PIL.ImageFile import ImageFile

_BITS, _PHOTOMETRIC, _PLANAR, _COLOR_MAP, _SAMPLE_FORMAT = 258, 262, 284, 320, 339  # tags of TIFF 6.0
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# libtiff returns samples in the order of the machine, also those of a big-endian file.
_NATIVE = {"I;16BS": "I;16NS", "I;32B": "I;32N", "I;32BS": "I;32NS", "F;32BF": "F;32NF", "F;64BF": "F;64NF"}

# Samples that Pillow can unpack but does not recognise: without these entries it would refuse the file.
# (byte order, photometric interpretation, sample format, fill order, bits, extra samples) -> mode, raw mode
for _order, _b in ((b"II", ""), (b"MM", "B")):
    for _photometric in (0, 1):
        for _format, _bits, _mode, _raw in (
            (1, 12, "I;16", "I;12"),
            (1, 16, f"I;16{_b}", f"I;16{_b}"),
            (1, 32, "I", f"I;32{_b}"),
            (2, 8, "L", "L"),
            (2, 16, "I", f"I;16{_b}S"),
            (2, 32, "I", f"I;32{_b}S"),
            (3, 64, "F", f"F;64{_b}F"),
        ):
            TiffImagePlugin.OPEN_INFO.setdefault(
                (_order, _photometric, (_format,), 1, (_bits,), ()), (_mode, _raw)
            )
    for _extra in (0, 1, 2):  # grey and alpha of 16 bits, as four bytes
        TiffImagePlugin.OPEN_INFO.setdefault((_order, 1, (1,), 1, (16, 16), (_extra,)), ("RGBA", "RGBA"))


def grey_samples(opened: ImageFile) -> Real[np.ndarray, "height width"] | None:
    """Return the grey values of an image of more than 8 bits or of signed ones, upright and with 0 as black.

    Returns:
        ``None`` for other images.
    """
    tags = _tags(opened)
    white_is_zero = bool(tags) and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    format_ = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    signed_bytes = opened.mode == "L" and format_ == _SIGNED
    if not (opened.mode in ("I", "F") or opened.mode.startswith("I;") or signed_bytes):
        return None
    raw = _raw_mode(opened)
    if opened.tile and opened.tile[0].codec_name == "libtiff" and raw in _NATIVE:
        _set_raw_mode(opened, lambda _: _NATIVE[raw])
    values = np.asarray(ImageOps.exif_transpose(opened))
    if signed_bytes:
        values = values.view(np.int8)
    elif opened.mode == "I" and format_ == _UNSIGNED and raw.startswith("I;32"):
        values = values.view(np.uint32)
    return -values.astype(np.float64) if white_is_zero else values


def is_16_bit_colour(opened: ImageFile) -> bool:
    """Whether an unread image has colours, or grey and alpha, of 16 bits each, of which Pillow drops 8."""
    deep_tiff = opened.mode in ("RGB", "RGBA") and 16 in _tags(opened).get(_BITS, ())
    return deep_tiff or _is_deep_ppm(opened) or _raw_mode(opened).startswith(("RGB;16", "RGBA;16", "LA;16"))


def colour_samples(
    open_image: Callable[[], ImageFile],
) -> tuple[Real[np.ndarray, "height width channels"], Float[np.ndarray, "height width"] | None]:
    """Return the samples of an image of :func:`is_16_bit_colour`, upright, and its opacity from 0 to 1.

    Args:
        open_image: opens the image anew; Pillow decodes it twice, for the high and for the low bytes.

    Raises:
        ValueError: the samples are in compressed planes, of which Pillow gives the high bytes alone.
    """
    with open_image() as image:
        _as_raw(image)
        raw, tags = _raw_mode(image), _tags(image)
        transparent = image.info.get("transparency")
        if raw in ("LA;16B", "RGBA"):  # grey and alpha: four bytes a pixel
            _set_raw_mode(image, lambda _: "RGBA")
            native = image.tile[0].codec_name == "libtiff"
            order = "=" if native else "<" if tags and tags.prefix == b"II" else ">"
            pair = np.asarray(ImageOps.exif_transpose(image)).view(f"{order}u2")
            return pair[..., :1], _opacity(pair[..., 1])
        order = None
        if tags.get(_PLANAR) == 2:
            if image.tile[0].codec_name != "raw":
                raise ValueError("16-bit colours in compressed planes: save it with PlanarConfiguration 1")
            order = "L" if tags.prefix == b"II" else "B"
            _set_raw_mode(image, lambda band: f"{band};16{order}")
        high = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    with open_image() as image:
        _as_raw(image)
        other = _OTHER_ORDER[order or _raw_mode(image)[-1]]
        _set_raw_mode(image, lambda mode: f"{mode};16{other}" if order else mode[:-1] + other)
        values = high * 256 + np.asarray(ImageOps.exif_transpose(image))
    if values.shape[2] == 4:
        return values[..., :3], _opacity(values[..., 3])
    if transparent is not None:  # PNG's tRNS: the colour that is transparent
        return values, (values != np.array(transparent)).any(-1).astype(np.float64)
    return values, None


def _opacity(alpha: Integer[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Scale alpha by its maximum, since it may have as few bits as the values beside it."""
    return alpha / max(int(alpha.max()), 1)


def _as_raw(opened: ImageFile) -> None:
    """Read the samples of a PPM of more than 8 bits as those of an uncompressed TIFF, unscaled."""
    if _is_deep_ppm(opened):
        opened.tile = [tile._replace(codec_name="raw", args=("RGB;16B", 0, 1)) for tile in opened.tile]


def _is_deep_ppm(opened: ImageFile) -> bool:
    if opened.mode != "RGB" or not opened.tile or opened.tile[0].codec_name != "ppm":
        return False
    arguments: Any = opened.tile[0].args  # mode and maximum
    return arguments[1] > 255


def use_8_bit_palette(opened: ImageFile) -> None:
    """Replace the palette of a TIFF that stores 8-bit colours where 16 bits belong: Pillow makes it black."""
    colours = _tags(opened).get(_COLOR_MAP, ())
    if opened.mode == "P" and colours and 0 < max(colours) < 256:
        opened.putpalette(bytes(colours), "RGB;L")


def _tags(opened: ImageFile) -> Any:
    """Return the tags of a TIFF; an empty mapping for other formats."""
    return getattr(opened, "tag_v2", {})


def _raw_mode(opened: ImageFile) -> str:
    """Return how the samples lie in the file, by the name that Pillow's unpackers have for it."""
    arguments = opened.tile[0].args if opened.tile else None
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _set_raw_mode(opened: ImageFile, change: Callable[[str], str]) -> None:
    def changed(arguments: Any) -> Any:
        return change(arguments) if isinstance(arguments, str) else (change(arguments[0]), *arguments[1:])

    opened.tile = [tile._replace(args=changed(tile.args)) for tile in opened.tile]
