"""Checks on pictures that a source makes once, before training: do they decode, and which are the same."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from medvlm_r1.data.check_cache import CheckCache, stamp_of
from medvlm_r1.data.dicom import DicomImage
from medvlm_r1.data.nifti import NiftiImage
from medvlm_r1.data.sample import BadRowError, ImageFile, ImageHandle, VQASample

_WIDEST = 200  # ratio of sides at which Qwen2-VL's image processor gives up
_WORTH_KEEPING = 200  # pictures; fewer are decoded before a reader would notice
_WORTH_A_BAR = 2000
_BATCH = 5000  # pictures between two writes of what was found: what a killed run loses


def check_images(samples: Sequence[VQASample], workers: int | None = None) -> list[tuple[VQASample, str]]:
    """Decode every picture fully, each one once however many questions show it.

    A file that was found good by an earlier run and has not changed since is not decoded again.

    Args:
        samples: the questions whose pictures are decoded.
        workers: threads; Pillow's decoders release the interpreter lock. Default: one per core, at most 8.

    Returns:
        The samples with a picture that does not decode, in order, each with the reason.
    """
    pictures = {handle.name: handle for sample in samples for handle in sample.images}
    faults = _faults(pictures, workers or min(8, os.cpu_count() or 1))
    return [
        (sample, next(faults[handle.name] for handle in sample.images if handle.name in faults))
        for sample in samples
        if any(handle.name in faults for handle in sample.images)
    ]


def _faults(pictures: dict[str, ImageHandle], workers: int) -> dict[str, str]:
    cache = CheckCache() if len(pictures) >= _WORTH_KEEPING else None
    stamps = {}
    if cache is not None:
        files = {name: h.path for name, h in pictures.items() if isinstance(h, ImageFile)}
        stamps = {name: stamp for name, path in files.items() if (stamp := stamp_of(path))}
        known = {name for name, stamp in stamps.items() if cache.has(files[name], stamp)}
        pictures = {name: handle for name, handle in pictures.items() if name not in known}
    console = Console(stderr=True)
    wanted = (
        console.is_terminal and len(pictures) >= _WORTH_A_BAR and os.environ.get("LOCAL_RANK", "0") == "0"
    )
    faults, good = {}, {}
    with ThreadPoolExecutor(workers) as pool:
        reasons = track(
            pool.map(_fault, pictures.values()),
            description="Checking images",
            total=len(pictures),
            console=console,
            transient=True,
            disable=not wanted,
        )
        for (name, handle), reason in zip(pictures.items(), reasons, strict=True):
            if reason:
                faults[name] = reason
            elif name in stamps:
                good[handle.path] = stamps[name]
                if len(good) == _BATCH:
                    cache.add(good)
                    good = {}
    if cache is not None:
        cache.add(good)
    return faults


def _fault(handle: ImageHandle) -> str | None:
    try:
        width, height = handle.load().size
    except BadRowError as error:
        return str(error)
    except Exception as error:  # damaged headers make Pillow raise more than OSError (bombs, ValueError)
        return f"image {handle.name} cannot be decoded ({error})"
    if max(width, height) > _WIDEST * min(width, height):
        return f"image {handle.name} is {width} x {height} pixels, too narrow for the model: crop it"
    return None


def image_digest(handle: ImageHandle) -> str | None:
    """SHA-256 that two handles share if they show the same picture.

    Returns:
        The digest of the file's bytes, so that all slices of a volume share it; for a folder, of its
        files' digests; of size and pixels for a picture that is no file; ``None`` where the file is not
        there.
    """
    if isinstance(handle, ImageFile | DicomImage | NiftiImage):
        if handle.path.is_dir():
            files = sorted(_file_digest(path) for path in handle.path.iterdir() if path.is_file())
            return hashlib.sha256("".join(files).encode()).hexdigest()
        return _file_digest(handle.path) if handle.path.is_file() else None
    picture = handle.load()
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
