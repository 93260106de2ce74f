"""Is a picture shown twice? Fingerprints of all pictures, and from them the pairs worth a closer look.

A fingerprint is what can be compared without decoding again: digests of bytes and of pixels, and a grey
thumbnail of 32 x 32. Pairs of thumbnails are sieved twice, each time for all pairs of a block at once:

1. by the correlation of their lowest frequencies (a perceptual hash that was not cut down to bits). To
   mirror a picture is to turn the sign of every odd horizontal frequency, so mirrored copies cost a
   second matrix product and nothing else;
2. by how much of one thumbnail the other explains when it may be shifted and stretched a little. To first
   order that is a linear regression on the thumbnail and its gradients, so what is cropped at the edges
   stays in and what merely looks alike drops out.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from medvlm_r1.data.audit.kinds import View, view
from medvlm_r1.data.checks import image_digest
from medvlm_r1.data.progress import tracked
from medvlm_r1.data.sample import ImageFile, ImageHandle

SIDE = 32  # pixels of a thumbnail
ALIKE = 0.85  # correlation of lowest frequencies; a crop by 2 % on each side keeps at least 0.86
EXPLAINED = 0.93  # share of a thumbnail's variance that the other one explains
SURELY = 0.98  # from here every pair is looked at; below, the nearest few of each picture
NEAREST = 3
_FREQUENCIES = 16  # lowest that are kept a side
_FLAT = 2.0  # standard deviation of grey values below which a picture shows nothing to compare
_EDGE = 2  # pixels of a thumbnail that a shift may bring in from outside
_BLOCK = 1024  # pictures a side of one matrix product
_MIRROR = np.tile(np.where(np.arange(_FREQUENCIES) % 2, -1.0, 1.0), _FREQUENCIES).astype(np.float32)
_Y, _X = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)


@dataclass(frozen=True)
class Fingerprint:
    """What one decoded picture is compared by.

    Attributes:
        bytes: digest of the file; of size and pixels where the picture is no file.
        pixels: digest of size and decoded RGB.
        thumbnail: grey, squeezed into a square.
        view: for the closer look; ``None`` for a file, which is decoded again where that comes.
    """

    bytes: str
    pixels: str
    thumbnail: UInt8[np.ndarray, "32 32"]
    view: View | None = None

    @cached_property
    def is_flat(self) -> bool:
        """Whether it shows one grey value and little else."""
        return float(self.thumbnail.std()) < _FLAT


@dataclass(frozen=True)
class Candidate:
    """Two pictures that may show the same: places in two sequences, and whether one seems mirrored."""

    first: int
    second: int
    explained: float
    mirrored: bool


def fingerprint(handle: ImageHandle) -> Fingerprint | None:
    """Decode a picture; ``None`` where its file is not there.

    Raises:
        BadRowError: the file is there and cannot be decoded.
    """
    if isinstance(handle, ImageFile) and not handle.path.is_file():
        return None
    picture = handle.load()
    pixels = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    thumbnail = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    if isinstance(handle, ImageFile):
        return Fingerprint(image_digest(handle) or pixels, pixels, thumbnail)
    return Fingerprint(pixels, pixels, thumbnail, view(picture))


def fingerprints(handles: Sequence[ImageHandle], workers: int | None = None) -> list[Fingerprint | None]:
    """Fingerprints in order, decoded in threads: Pillow's decoders release the interpreter lock.

    Args:
        handles: pictures, each one once.
        workers: threads. Default: one per core, at most 8.
    """
    return list(in_threads(fingerprint, handles, "Auditing images", workers))


def in_threads(function, items: Sequence, description: str, workers: int | None = None) -> Iterator:
    """``map`` over threads, in order, with a bar on a terminal where there is much to do."""
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        yield from tracked(pool.map(function, items), description, len(items))


def candidates(first: Sequence[Fingerprint], second: Sequence[Fingerprint]) -> list[Candidate]:
    """Pairs that both sieves let through, ordered by places; flat pictures are in none.

    Of each picture of ``second`` these are all pairs above ``SURELY`` and its ``NEAREST`` others, so that
    a set of pictures that all look alike costs no more than its size. Memory is that of one block of
    pairs, however many pictures there are.
    """
    rows = [i for i, f in enumerate(first) if not f.is_flat]
    columns = [j for j, f in enumerate(second) if not f.is_flat]
    found = []
    for left in tracked(range(0, len(columns), _BLOCK), "Comparing thumbnails", -(-len(columns) // _BLOCK)):
        inside = columns[left : left + _BLOCK]
        here = [
            Candidate(top_rows[c.first], inside[c.second], c.explained, c.mirrored)
            for top in range(0, len(rows), _BLOCK)
            for top_rows in [rows[top : top + _BLOCK]]
            for c in _sieved(_stack(first, top_rows), _stack(second, inside))
        ]
        found += _nearest(here)
    return sorted(found, key=lambda c: (c.second, c.first))


def _stack(prints: Sequence[Fingerprint], places: Sequence[int]) -> Float[np.ndarray, "n 32 32"]:
    return np.stack([prints[i].thumbnail for i in places]).astype(np.float32)


def _nearest(found: list[Candidate]) -> list[Candidate]:
    kept, taken = [], {}
    for candidate in sorted(found, key=lambda c: (-c.explained, c.first)):
        if candidate.explained < SURELY:
            taken[candidate.second] = taken.get(candidate.second, 0) + 1
        if taken.get(candidate.second, 0) <= NEAREST:
            kept.append(candidate)
    return kept


def _sieved(a: Float[np.ndarray, "n 32 32"], b: Float[np.ndarray, "m 32 32"]) -> Iterator[Candidate]:
    low_a, low_b = _lowest(a), _lowest(b)
    for mirrored, turned, low in ((False, b, low_b), (True, b[:, :, ::-1], low_b * _MIRROR)):
        i, j = np.nonzero(low_a @ low.T >= ALIKE)
        # Most pictures are like none: spans of the others alone.
        (some_a, i), (some_b, j) = (np.unique(k, return_inverse=True) for k in (i, j))
        if not len(i):
            continue
        spans_a, flat_a = _spans(a[some_a])
        spans_b, flat_b = _spans(turned[some_b])
        for part in np.array_split(np.arange(len(i)), len(i) // 2048 + 1):
            p, q = i[part], j[part]
            share = np.maximum(
                (np.einsum("nsk,ns->nk", spans_a[p], flat_b[q]) ** 2).sum(1),
                (np.einsum("nsk,ns->nk", spans_b[q], flat_a[p]) ** 2).sum(1),
            )
            for k in np.flatnonzero(share >= EXPLAINED):
                yield Candidate(int(some_a[p[k]]), int(some_b[q[k]]), float(share[k]), mirrored)


def _lowest(grey: Float[np.ndarray, "n 32 32"]) -> Float[np.ndarray, "n k"]:
    """The lowest frequencies without the mean, at unit length."""
    waves = dctn(grey, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES].reshape(len(grey), -1)
    waves[:, 0] = 0.0
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def _spans(
    grey: Float[np.ndarray, "n 32 32"],
) -> tuple[Float[np.ndarray, "n s 5"], Float[np.ndarray, "n s"]]:
    """Bases of thumbnails and their small shifts and stretches, orthonormal; thumbnails at unit length."""
    smooth = gaussian_filter(grey, (0, 0.7, 0.7))
    dy, dx = np.gradient(smooth, axis=(1, 2))
    moved = np.stack([smooth, dx, _X * dx, dy, _Y * dy], axis=-1)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    moved = moved.reshape(len(grey), -1, 5)
    moved -= moved.mean(1, keepdims=True)
    flat = moved[:, :, 0] / np.maximum(np.linalg.norm(moved[:, :, 0], axis=1, keepdims=True), 1e-9)
    return np.linalg.qr(moved)[0], flat
