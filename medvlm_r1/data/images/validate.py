"""Checks on pictures that a source makes once, before training: do they decode, and which are the same."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from medvlm_r1.data.images.content_key import image_key
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.sample import BadRowError, ImageHandle, VQASample
from medvlm_r1.runs.progress import track

_WIDEST = 200  # ratio of sides at which Qwen2-VL's image processor gives up
WORTH_KEEPING = 200  # pictures; fewer are decoded before a reader would notice


def check_images(samples: Sequence[VQASample], workers: int | None = None) -> list[tuple[VQASample, str]]:
    """Decode every picture fully, each one once however many questions show it.

    A picture whose file was found good by an earlier run and has not changed since is not decoded again.

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
    if len(pictures) < WORTH_KEEPING:
        with ThreadPoolExecutor(workers) as pool:
            reasons = zip(pictures, pool.map(_fault, pictures.values()), strict=True)
            return {name: reason for name, reason in reasons if reason}
    with DigestCache() as known, ThreadPoolExecutor(workers) as pool:
        # What is known is looked up in this thread alone: the lookups of several would wait for each other.
        found = track(pictures.items(), "Looking for changed images", len(pictures))
        new = {name: handle for name, handle in found if not _was_good(handle, known)}
        judged = pool.map(lambda handle: _fault_now(handle, known), new.values())
        reasons = zip(new, track(judged, "Checking images", len(new)), strict=True)
        return {name: reason for name, reason in reasons if reason}


def _was_good(handle: ImageHandle, known: DigestCache) -> bool:
    key = image_key(handle, known, unread=True)
    return key is not None and known.is_good(key)


def _fault_now(handle: ImageHandle, known: DigestCache) -> str | None:
    """The fault of a picture, decoded only where it was not found good before. What is damaged is mended."""
    try:
        key = image_key(handle, known)
    except BadRowError as error:
        return str(error)
    if key and known.is_good(key):
        return None
    reason = _fault(handle)
    if key and not reason and image_key(handle, known) == key:  # it may have changed meanwhile
        known.add_good(key)
    return reason


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
