"""Is a picture shown twice? Fingerprints of all pictures, and from them the pairs worth a closer look.

A fingerprint is what can be compared without decoding again: digests of bytes and of pixels, and a grey
thumbnail of 32 x 32. Pairs of thumbnails are sieved twice, each time for all pairs of a block at once:

1. by the correlation of their lowest frequencies (a perceptual hash that was not cut down to bits). To
   mirror a picture is to turn the sign of every odd horizontal frequency, and to turn it by a quarter is
   to transpose them and turn some signs: all eight ways to lay a square on itself cost two matrix products;
2. by how much of one thumbnail the other explains when it may be shifted and stretched a little. To first
   order that is a linear regression on the thumbnail and its gradients, so what is cropped at the edges
   stays in and what merely looks alike drops out.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from medvlm_r1.audit.compare_pair import Turn, View, view
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.sample import ImageHandle
from medvlm_r1.runs.progress import track

SIDE = 32  # pixels of a thumbnail
ALIKE = 0.85  # correlation of lowest frequencies; a crop by 2 % on each side keeps at least 0.86
EXPLAINED = 0.93  # share of a thumbnail's variance that the other one explains
TURNED = (0.90, 0.95)  # the same two for pictures turned by quarters: bodies seldom look alike upside down
SURELY = 0.98  # from here every pair is looked at; below, the nearest few of each picture
NEAREST = 3
_FREQUENCIES = 16  # lowest that are kept a side
_FLAT = 2.0  # standard deviation of grey values below which a picture shows nothing to compare
_EDGE = 2  # pixels of a thumbnail that a shift may bring in from outside
_BLOCK = 1024  # pictures a side of one matrix product
_WORTH_PROCESSES = 200  # pictures; forking costs some 0.1 s
_CHUNK = 16  # pictures that a process takes at a time
# By what a turn does to the frequencies: whether they are transposed, then the signs of odd rows and columns.
_TURN = {
    (False, 1, 1): Turn(),
    (False, 1, -1): Turn(mirrored=True),
    (False, -1, 1): Turn(mirrored=True, quarters=2),
    (False, -1, -1): Turn(quarters=2),
    (True, 1, 1): Turn(mirrored=True, quarters=1),
    (True, -1, 1): Turn(quarters=1),
    (True, 1, -1): Turn(quarters=3),
    (True, -1, -1): Turn(mirrored=True, quarters=3),
}
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
    """Two pictures that may show the same: places in two sequences, and how the second seems turned."""

    first: int
    second: int
    explained: float
    turn: Turn


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
    """Fingerprints in order.

    Files are decoded in threads, since Pillow's decoders release the interpreter lock; many pictures that are
    rendered or read otherwise, in processes, where the system can fork them.

    Args:
        handles: pictures, each one once.
        workers: threads or processes. Default: one per core, at most 8.
    """
    made = sum(not isinstance(handle, ImageFile) for handle in handles)
    forks = made >= _WORTH_PROCESSES and workers != 1 and "fork" in multiprocessing.get_all_start_methods()
    return list(in_parallel(fingerprint, handles, "Auditing images", workers, forks))


def in_parallel(
    function: Callable, items: Sequence, description: str, workers: int | None = None, processes: bool = False
) -> Iterator:
    """``map`` over threads or processes, in order, with a bar on a terminal where there is much to do."""
    workers = workers or min(8, os.cpu_count() or 1)
    pool = (
        ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
        if processes
        else ThreadPoolExecutor(workers)
    )
    with pool:
        found = pool.map(function, items, chunksize=_CHUNK)  # threads take one at a time
        yield from track(found, description, len(items))


def candidates(first: Sequence[Fingerprint], second: Sequence[Fingerprint]) -> list[Candidate]:
    """Pairs that both sieves let through, ordered by places; flat pictures are in none.

    Of each picture of ``second`` these are all pairs above ``SURELY`` and its ``NEAREST`` others, as it lies
    and again turned by quarters, so that a set of pictures that all look alike costs no more than its size.
    Memory is that of one block of pairs, however many pictures there are.
    """
    rows = [i for i, f in enumerate(first) if not f.is_flat]
    columns = [j for j, f in enumerate(second) if not f.is_flat]
    found = []
    for left in track(range(0, len(columns), _BLOCK), "Comparing thumbnails", -(-len(columns) // _BLOCK)):
        inside = columns[left : left + _BLOCK]
        here = [
            Candidate(top_rows[c.first], inside[c.second], c.explained, c.turn)
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
        place = candidate.second, candidate.turn.quarters > 0
        if candidate.explained < SURELY:
            taken[place] = taken.get(place, 0) + 1
        if taken.get(place, 0) <= NEAREST:
            kept.append(candidate)
    return kept


def _sieved(a: Float[np.ndarray, "n 32 32"], b: Float[np.ndarray, "m 32 32"]) -> Iterator[Candidate]:
    found = [
        (turn, i, j)
        for turn, alike in _alike_when_turned(_lowest(a), _lowest(b))
        for i, j in [np.nonzero(alike >= (TURNED[0] if turn.quarters else ALIKE))]
        if len(i)
    ]
    if not found:
        return
    # Most pictures are like none: spans of the others alone.
    some_a, some_b = (np.unique(np.concatenate([pairs[k] for pairs in found])) for k in (1, 2))
    (spans_a, flat_a), (spans_b, flat_b) = _spans(a[some_a]), _spans(b[some_b])
    for turn, i, j in found:
        first, second = np.searchsorted(some_a, i), np.searchsorted(some_b, j)
        share = _explained(first, second, spans_a, turn.of(flat_b))
        by_second = np.argsort(j, kind="stable")
        back = _explained(second[by_second], first[by_second], spans_b, turn.back().of(flat_a))
        share[by_second] = np.maximum(share[by_second], back)
        for k in np.flatnonzero(share >= (TURNED[1] if turn.quarters else EXPLAINED)):
            yield Candidate(int(i[k]), int(j[k]), float(share[k]), turn)


def _alike_when_turned(
    a: Float[np.ndarray, "n 16 16"], b: Float[np.ndarray, "m 16 16"]
) -> Iterator[tuple[Turn, Float[np.ndarray, "n m"]]]:
    """Correlations of all pairs, for each turn of the second picture."""
    for transposed in (False, True):
        other = b.swapaxes(1, 2) if transposed else b
        even, odd_columns, odd_rows, odd = (
            _flat(a[:, row::2, column::2]) @ _flat(other[:, row::2, column::2]).T
            for row in (0, 1)
            for column in (0, 1)
        )
        for rows in (1, -1):
            whole, part = (
                (even + odd_rows, odd_columns + odd) if rows > 0 else (even - odd_rows, odd_columns - odd)
            )
            yield _TURN[transposed, rows, 1], whole + part
            yield _TURN[transposed, rows, -1], whole - part


def _flat(pictures: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n p"]:
    return np.ascontiguousarray(pictures).reshape(len(pictures), -1)


def _explained(
    i: Integer[np.ndarray, "k"],
    j: Integer[np.ndarray, "k"],
    spans: Float[np.ndarray, "n p 5"],
    flat: Float[np.ndarray, "m s s"],
) -> Float[np.ndarray, "k"]:
    """Share of ``flat[j]`` that ``spans[i]`` explains, pair by pair; ``i`` is sorted."""
    rows, share = _flat(flat), np.empty(len(i), dtype=np.float32)
    starts = np.flatnonzero(np.diff(i, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(i)], strict=True):
        share[start:end] = ((rows[j[start:end]] @ spans[i[start]]) ** 2).sum(1)
    return share


def _lowest(grey: Float[np.ndarray, "n 32 32"]) -> Float[np.ndarray, "n 16 16"]:
    """The lowest frequencies without the mean, at unit length."""
    waves = dctn(grey, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES]
    waves[:, 0, 0] = 0.0
    return waves / np.linalg.norm(waves, axis=(1, 2), keepdims=True)


def _spans(
    grey: Float[np.ndarray, "n 32 32"],
) -> tuple[Float[np.ndarray, "n p 5"], Float[np.ndarray, "n s s"]]:
    """Bases of thumbnails and their small shifts and stretches, orthonormal; thumbnails at unit length."""
    smooth = gaussian_filter(grey, (0, 0.7, 0.7))
    dy, dx = np.gradient(smooth, axis=(1, 2))
    moved = np.stack([smooth, dx, _X * dx, dy, _Y * dy], axis=-1)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    moved = moved.reshape(len(grey), -1, 5)
    moved -= moved.mean(1, keepdims=True)
    flat = moved[:, :, 0] / np.maximum(np.linalg.norm(moved[:, :, 0], axis=1, keepdims=True), 1e-9)
    side = SIDE - 2 * _EDGE
    return np.linalg.qr(moved)[0], flat.reshape(-1, side, side)
