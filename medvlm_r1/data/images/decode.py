"""Decode an image file as RGB, upright, whatever its bit depth."""

from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medvlm_r1.data.sample import BadRowError


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.as_posix()

    def load(self) -> Image.Image:
        """Decode the file; see :func:`decode`.

        Raises:
            BadRowError: the file is missing, is no picture, or is cut short.
        """
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait for ever
            raise BadRowError(f"image {self.path} cannot be decoded (it is a folder or a device, no file)")
        return decode(self.path, self.name)


def decode(picture: Path | BufferedIOBase, name: str) -> Image.Image:
    """The picture as RGB, upright: turned as its EXIF orientation says, like transformers'
    ``load_image``, through which a processor's own call goes.

    A grey picture of more than 8 bits (16- or 32-bit integers, or floats) is first windowed linearly
    from its own darkest to its own brightest pixel; one of a single value becomes black. Pillow's
    conversion would clip all above 255 to white, which blanks most of a scan. What is transparent
    shows white, as the model's image processor has it.

    Args:
        picture: a file, or a stream of its bytes.
        name: what error messages call it.

    Raises:
        BadRowError: there is no file, or no picture in it, or it is cut short.
    """
    try:
        with Image.open(picture) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
                return _windowed(upright).convert("RGB")
            if "A" in upright.getbands() or upright.info.get("transparency") is not None:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                return Image.alpha_composite(white, upright).convert("RGB")
            return upright.convert("RGB")
    except FileNotFoundError:
        raise BadRowError(f"image {name} does not exist") from None
    except Image.DecompressionBombError as error:
        raise BadRowError(
            f"image {name} claims more pixels than are decoded safely ({error}): shrink it"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadRowError(f"image {name} cannot be decoded ({error})") from error


def _windowed(picture: Image.Image) -> Image.Image:
    """A grey picture of any depth in 8 bits: its own darkest pixel 0, its own brightest 255."""
    values = np.asarray(picture).astype(np.float64)
    known = values[np.isfinite(values)]  # floats may hold NaN outside the scanned region
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return Image.fromarray(((values - low) / (high - low or 1.0) * 255).round().astype(np.uint8))
