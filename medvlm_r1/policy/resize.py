"""Images at the size at which the vision tower takes them."""

import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.sample import BadRowError, ImageHandle, Question

PATCH = 28  # side in pixels of the square that becomes one token of Qwen2-VL: 2 x 2 patches of 14
MAX_ASPECT_RATIO = 200  # the image processor refuses longer images
_VERSION = 1  # part of the cache key: increase it when load_resized returns other pixels


def load_resized(
    image: ImageHandle,
    sample: Question,
    image_size: int | None,
    min_pixels: int,
    max_pixels: int,
    cache: ImageCache | None = None,
    patch: int = PATCH,
) -> Image.Image:
    """Load an image at the size at which the model's image processor cuts it into patches.

    Args:
        image_size: see :func:`load_image`, which also gives the errors.
        min_pixels, max_pixels: limits of the resized image.
        patch: side in pixels of the square that becomes one token.
    """

    def resized() -> Image.Image:
        picture = load_image(image, sample, image_size)
        height, width = smart_resize(picture.height, picture.width, patch, min_pixels, max_pixels)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    if cache is None:
        return resized()
    settings = (_VERSION, transformers.__version__, image_size, min_pixels, max_pixels, patch)
    return cache.get(image, settings, resized)


def load_image(image: ImageHandle, sample: Question, side: int | None) -> Image.Image:
    """Load an image, resized to a square of ``side`` pixels; ``None`` keeps its size.

    Raises:
        BadRowError: the image cannot be decoded, or is over 200 times as long as wide.
    """
    picture = image.load()
    if side is not None:
        return picture.resize((side, side), Image.Resampling.BICUBIC)
    if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
        raise BadRowError(
            f"{sample.id}: image {image.name} is {picture.width} x {picture.height} pixels, more than "
            f"{MAX_ASPECT_RATIO} times as long as wide, which the model cannot take: crop it, or set "
            "model.recipe.image_size"
        )
    return picture
