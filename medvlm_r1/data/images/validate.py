"""Decode every image once before training, and remember the valid ones for later runs."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from medvlm_r1.data.images.content_key import image_key
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.images.notes import Note, counted, notes_of
from medvlm_r1.data.sample import BadRowError, ImageHandle, Question
from medvlm_r1.runs.progress import track

logger = logging.getLogger(__name__)

_MAX_ASPECT_RATIO = 200  # limit of Qwen2-VL's image processor
WORTH_KEEPING = 200  # images; fewer are decoded at once, and the results are not stored

Result = str | tuple[Note, ...]
"""The fault of an image that cannot be used, or the notes about one that can."""


def check_images(samples: Sequence[Question]) -> list[tuple[Question, str]]:
    """Decode every image, each one once, however many questions show it.

    Skips images that an earlier run decoded and that have not changed since. Logs one warning for each kind
    of note about the images, with their number and the first: what is blank, or not shown in full.

    Returns:
        The samples with an undecodable image, in order, each with the reason.
    """
    handles = {handle.name: handle for sample in samples for handle in sample.images}
    results = _results(handles)
    faults = {name: result for name, result in results.items() if isinstance(result, str)}
    notes = {name: result for name, result in results.items() if not isinstance(result, str)}
    for kind, note in counted(notes).items():
        logger.warning("%d images %s; the first: %s", note["n"], kind, note["first"])
    return [
        (sample, next(faults[handle.name] for handle in sample.images if handle.name in faults))
        for sample in samples
        if any(handle.name in faults for handle in sample.images)
    ]


def _results(handles: dict[str, ImageHandle]) -> dict[str, Result]:
    workers = min(8, os.cpu_count() or 1)  # threads: Pillow's decoders release the interpreter lock
    if len(handles) < WORTH_KEEPING:
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(handles, pool.map(_decode, handles.values()), strict=True))
    with DigestCache() as known, ThreadPoolExecutor(workers) as pool:
        # One thread looks up the known images; several would wait for each other.
        items = track(handles.items(), "Looking for changed images", len(handles))
        notes = {name: _known_notes(handle, known) for name, handle in items}
        new = {name: handles[name] for name, found in notes.items() if found is None}
        checks = pool.map(lambda handle: _check(handle, known), new.values())
        checked = dict(zip(new, track(checks, "Checking images", len(new)), strict=True))
        return {name: checked[name] if found is None else found for name, found in notes.items()}


def _known_notes(handle: ImageHandle, known: DigestCache) -> tuple[Note, ...] | None:
    key = image_key(handle, known, unread=True)
    return None if key is None else _parsed(known.notes(key))


def _parsed(notes: str | None) -> tuple[Note, ...] | None:
    return None if notes is None else tuple(Note(*note) for note in json.loads(notes or "[]"))


def _check(handle: ImageHandle, known: DigestCache) -> Result:
    """Decode an image, unless its content is known to be good."""
    try:
        key = image_key(handle, known)
    except BadRowError as error:
        return str(error)
    if key and (notes := _parsed(known.notes(key))) is not None:
        return notes
    result = _decode(handle)
    if key and not isinstance(result, str) and image_key(handle, known) == key:  # it may change in between
        known.add_good(key, json.dumps(result) if result else "")
    return result


def _decode(handle: ImageHandle) -> Result:
    try:
        image = handle.load()
    except BadRowError as error:
        return str(error)
    except Exception as error:  # damaged headers make Pillow raise more than OSError (bombs, ValueError)
        return f"image {handle.name} cannot be decoded ({error})"
    width, height = image.size
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        return f"image {handle.name} is {width} x {height} pixels, too narrow for the model: crop it"
    return notes_of(image)
