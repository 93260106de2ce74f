"""Milliseconds to decode and resize an image, and to read it from the image cache.

python experiments/large_data/pictures.py
"""

import tempfile
import time
from pathlib import Path

import huggingface_hub.constants
import nibabel
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.sample import ImageHandle, Question
from medvlm_r1.policy.resize import load_resized

LIMITS = (56 * 56, 512 * 28 * 28)  # pixels; the range of a Qwen2-VL run
REPEATS = 7


def grey(side: int) -> Image.Image:
    """Return an image of smooth shapes with noise, as in a scan."""
    noise = np.random.default_rng(side)
    shapes = gaussian_filter(noise.normal(size=(side, side)), side / 12)
    values = 128 + 60 * shapes / shapes.std() + 3 * noise.normal(size=(side, side))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def files(folder: Path) -> dict[str, ImageHandle]:
    """Write images of several formats and sizes."""
    handles: dict[str, ImageHandle] = {}
    for side in (96, 256, 512, 1024, 3000):
        for suffix in ("png", "jpg"):
            path = folder / f"{side}.{suffix}"
            grey(side).save(path)
            handles[f"{suffix} {side} x {side}"] = ImageFile(path)
    values = np.random.default_rng(0).integers(0, 2000, (256, 256, 128), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "volume.nii.gz")
    handles["nii.gz 256 x 256 x 128"] = NiftiImage(folder / "volume.nii.gz")
    return handles


def milliseconds(handle: ImageHandle, cache: ImageCache | None) -> float:
    """Return the minimum of several measurements."""
    question, seconds = Question("q", (handle,), "q", ()), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        load_resized(handle, question, None, *LIMITS, cache)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def main() -> None:
    table = Table("image", "bytes", "decoded, ms", "cached, ms", "bytes in the cache")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        huggingface_hub.constants.HF_HOME = str(folder / "home")
        for name, handle in files(folder).items():
            cache = ImageCache(folder / name.replace(" ", ""))
            decoded, cached = milliseconds(handle, None), milliseconds(handle, cache)
            size = sum(path.stat().st_size for path in cache.folder.glob("??/*"))
            table.add_row(
                name, f"{handle.path.stat().st_size:,}", f"{decoded:.1f}", f"{cached:.1f}", f"{size:,}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
