"""Decode every image once before training, and remember the valid ones for later runs."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from medvlm_r1.data.images.content_key import image_key
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.sample import BadRowError, ImageHandle, Question
from medvlm_r1.runs.progress import track

_MAX_ASPECT_RATIO = 200  # limit of Qwen2-VL's image processor
WORTH_KEEPING = 200  # images; fewer are decoded at once, and the results are not stored


def check_images(samples: Sequence[Question]) -> list[tuple[Question, str]]:
    """Decode every image, each one once, however many questions show it.

    Skips images that an earlier run decoded and that have not changed since.

    Returns:
        The samples with an undecodable image, in order, each with the reason.
    """
    handles = {handle.name: handle for sample in samples for handle in sample.images}
    faults = _faults(handles)
    return [
        (sample, next(faults[handle.name] for handle in sample.images if handle.name in faults))
        for sample in samples
        if any(handle.name in faults for handle in sample.images)
    ]


def _faults(handles: dict[str, ImageHandle]) -> dict[str, str]:
    workers = min(8, os.cpu_count() or 1)  # threads: Pillow's decoders release the interpreter lock
    if len(handles) < WORTH_KEEPING:
        with ThreadPoolExecutor(workers) as pool:
            reasons = zip(handles, pool.map(_fault, handles.values()), strict=True)
            return {name: reason for name, reason in reasons if reason}
    with DigestCache() as known, ThreadPoolExecutor(workers) as pool:
        # One thread looks up the known images; several would wait for each other.
        items = track(handles.items(), "Looking for changed images", len(handles))
        new = {name: handle for name, handle in items if not _is_known_good(handle, known)}
        checks = pool.map(lambda handle: _check(handle, known), new.values())
        reasons = zip(new, track(checks, "Checking images", len(new)), strict=True)
        return {name: reason for name, reason in reasons if reason}


def _is_known_good(handle: ImageHandle, known: DigestCache) -> bool:
    key = image_key(handle, known, unread=True)
    return key is not None and known.is_good(key)


def _check(handle: ImageHandle, known: DigestCache) -> str | None:
    """Return the fault of an image, if any; decode it unless its content is known to be good."""
    try:
        key = image_key(handle, known)
    except BadRowError as error:
        return str(error)
    if key and known.is_good(key):
        return None
    reason = _fault(handle)
    if key and not reason and image_key(handle, known) == key:  # it may have changed in between
        known.add_good(key)
    return reason


def _fault(handle: ImageHandle) -> str | None:
    try:
        width, height = handle.load().size
    except BadRowError as error:
        return str(error)
    except Exception as error:  # damaged headers make Pillow raise more than OSError (bombs, ValueError)
        return f"image {handle.name} cannot be decoded ({error})"
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        return f"image {handle.name} is {width} x {height} pixels, too narrow for the model: crop it"
    return None
