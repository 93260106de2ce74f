"""Decode an image file as RGB, upright, by the depth and meaning of its samples."""

from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import IO, cast

import numpy as np
from jaxtyping import Float, Real
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile as PillowFile

from medvlm_r1.data.images.depth import colour_samples, grey_samples, is_16_bit_colour, use_8_bit_palette
from medvlm_r1.data.images.notes import FRAMES, Note, with_notes
from medvlm_r1.data.images.paths import missing_image
from medvlm_r1.data.sample import BadRowError


@dataclass(frozen=True)
class ImageFile:
    """An image file on disk.

    Attributes:
        path: the file.
        frame: index of the frame, from 0, of a file with several (TIFF, GIF, WebP, APNG).
    """

    path: Path
    frame: int = 0

    @property
    def name(self) -> str:
        return self.path.as_posix() + (f"#frame={self.frame}" if self.frame else "")

    def load(self) -> Image.Image:
        """Decode the file; see :func:`decode`."""
        if self.path.exists() and not self.path.is_file():  # opening a pipe would block
            raise BadRowError(f"image {self.path} cannot be decoded (it is a folder or a device, no file)")
        return decode(self.path, self.path.as_posix(), self.frame)


def decode(file: Path | BufferedIOBase, name: str, frame: int = 0) -> Image.Image:
    """Decode an image as RGB and apply its EXIF orientation, like transformers' ``load_image``.

    Samples of more than 8 bits (integers or floats, grey or colours) are first scaled linearly from the
    image's minimum to its maximum, over all visible pixels and channels; an image of one value becomes black.
    Pillow's conversion would clip grey values above 255 to white and take the high byte of colours, which
    blanks most of a scan. A TIFF whose PhotometricInterpretation is WhiteIsZero is inverted at every depth.
    Transparent pixels become white, as in the model's image processor.

    Args:
        file: a path, or a stream of its bytes.
        name: name of the image in error messages.
        frame: index from 0; a note says that the file has several.

    Raises:
        BadRowError: the file is missing, is no image, is truncated, or lacks the frame.
    """
    try:
        with _open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            if frame >= frames:
                held = f"has the frames 0 to {frames - 1}" if frames > 1 else "has one frame, 0"
                raise BadRowError(f"image {name} {held}, not {frame}: set frame to one of these")
            if frame:
                opened.seek(frame)
            notes = [Note(FRAMES, f"frame {frame} of {frames}, from 0")] if frames > 1 else []
            return with_notes(_as_rgb(opened, file, frame), notes)
    except FileNotFoundError:
        raise BadRowError(missing_image(Path(name))) from None
    except Image.DecompressionBombError as error:
        message = f"image {name} has more pixels than the decoder's limit ({error}): shrink it"
        raise BadRowError(message) from None
    except BadRowError:
        raise
    except UnidentifiedImageError:
        reason = "no image, or a depth or kind that is not read: save it as PNG or TIFF with 8 or 16 bits"
        raise BadRowError(f"image {name} cannot be decoded ({reason})") from None
    except Exception as error:  # damaged headers make Pillow raise errors of any type
        raise BadRowError(f"image {name} cannot be decoded ({error})") from error


def _open(file: Path | BufferedIOBase) -> PillowFile:
    return Image.open(file if isinstance(file, Path) else cast(IO[bytes], file))


def _as_rgb(opened: PillowFile, file: Path | BufferedIOBase, frame: int) -> Image.Image:
    if is_16_bit_colour(opened) and not (frame and opened.format == "PNG"):  # APNG adds its frames up

        def again() -> PillowFile:
            image = _open(file)
            if frame:
                image.seek(frame)
            return image

        return _on_white(*colour_samples(again))
    transparent = opened.info.get("transparency")
    values = grey_samples(opened)
    if values is not None:
        return _on_white(values[..., None], None if transparent is None else (values != transparent) * 1.0)
    use_8_bit_palette(opened)
    upright = ImageOps.exif_transpose(opened)
    if upright.mode == "La":  # alpha already multiplied in
        upright = upright.convert("LA")
    if "A" in upright.getbands() or "a" in upright.getbands() or transparent is not None:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")


def _on_white(
    values: Real[np.ndarray, "height width channels"], opacity: Float[np.ndarray, "height width"] | None
) -> Image.Image:
    """Scale samples to 8 bits, the minimum of the visible ones as 0 and their maximum as 255, over white."""
    values = values.astype(np.float64)
    seen = values if opacity is None else values[opacity > 0]
    finite = seen[np.isfinite(seen)]  # floats may be NaN outside the scanned region
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    levels = ((values - low) / (high - low or 1.0)).clip(0, 1) * 255
    if opacity is not None:
        levels = levels * opacity[..., None] + 255 * (1 - opacity[..., None])
    pixels = levels.round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
