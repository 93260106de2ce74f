"""Decode an image file as RGB, upright, whatever its bit depth."""

from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medvlm_r1.data.sample import BadRowError


@dataclass(frozen=True)
class ImageFile:
    """An image file on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.as_posix()

    def load(self) -> Image.Image:
        """Decode the file; see :func:`decode`."""
        if self.path.exists() and not self.path.is_file():  # opening a pipe would block
            raise BadRowError(f"image {self.path} cannot be decoded (it is a folder or a device, no file)")
        return decode(self.path, self.name)


def decode(file: Path | BufferedIOBase, name: str) -> Image.Image:
    """Decode an image as RGB and apply its EXIF orientation, like transformers' ``load_image``.

    Grey images of more than 8 bits (16- or 32-bit integers, or floats) are first scaled linearly from their
    minimum to their maximum; an image of a single value becomes black. Pillow's conversion would clip all
    values above 255 to white, which blanks most of a scan. Transparent pixels become white, as in the model's
    image processor.

    Args:
        file: a path, or a stream of its bytes.
        name: name of the image in error messages.

    Raises:
        BadRowError: the file is missing, is no image, or is truncated.
    """
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
                return _to_8_bits(upright).convert("RGB")
            if "A" in upright.getbands() or upright.info.get("transparency") is not None:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                return Image.alpha_composite(white, upright).convert("RGB")
            return upright.convert("RGB")
    except FileNotFoundError:
        raise BadRowError(f"image {name} does not exist") from None
    except Image.DecompressionBombError as error:
        message = f"image {name} has more pixels than the decoder's limit ({error}): shrink it"
        raise BadRowError(message) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadRowError(f"image {name} cannot be decoded ({error})") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image to 8 bits: its minimum becomes 0, its maximum 255."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]  # floats may be NaN outside the scanned region
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return Image.fromarray(((values - low) / (high - low or 1.0) * 255).round().astype(np.uint8))
