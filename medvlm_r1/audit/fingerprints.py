"""Find images that appear twice: fingerprints of all images, and candidate pairs for a closer comparison.

A fingerprint holds all that can be compared without decoding again: digests of the bytes and of the pixels,
and a grey thumbnail of 32 x 32. Two filters run over all pairs of thumbnails, block by block:

1. the correlation of their lowest frequencies (a perceptual hash without reduction to bits). Mirroring an
   image flips the sign of every odd horizontal frequency, and a quarter turn transposes the frequencies and
   flips some signs: all eight symmetries of a square cost two matrix products;
2. the share of one thumbnail's variance that the other explains under a small shift and stretch. To first
   order this is a linear regression on the thumbnail and its gradients: it keeps images cropped at the edges
   and rejects merely similar ones.
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
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.embedded import ZipImage
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.images.notes import Note, notes_of
from medvlm_r1.data.sample import ImageHandle
from medvlm_r1.runs.progress import track

SIDE = 32  # pixels a side of a thumbnail
MIN_CORRELATION = 0.85  # of the lowest frequencies; a crop by 2 % on each side keeps at least 0.86
MIN_EXPLAINED = 0.93  # share of a thumbnail's variance that the other explains
MIN_ROTATED = (0.90, 0.95)  # the same two for rotated images: bodies seldom look alike upside down
CERTAIN = 0.98  # explained share from which every pair is kept; below, the best few of each image
NEAREST = 3
_FREQUENCIES = 16  # lowest frequencies per axis
_FLAT = 2.0  # standard deviation of grey values below which an image is not compared
_EDGE = 2  # margin of a thumbnail that a shift may bring in from outside, pixels
_BLOCK = 1024  # images per side of one matrix product
_MIN_FOR_PROCESSES = 200  # images; forking costs about 0.1 s
_CHUNK = 16  # images per task of a process
# Effect of a turn on the frequencies (transposed, sign of odd rows, sign of odd columns) -> turn.
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
    """Digests and thumbnail of one decoded image."""

    bytes: str  # digest of the file; of size and pixels if the image is no file
    pixels: str  # digest of size and decoded RGB
    thumbnail: UInt8[np.ndarray, "32 32"]  # grey values
    view: View | None = None  # for the closer comparison; None for files, which are decoded again
    notes: tuple[Note, ...] = ()  # whether the image is blank, or not shown in full

    @cached_property
    def is_flat(self) -> bool:
        """Whether the image has almost no contrast."""
        return float(self.thumbnail.std()) < _FLAT


@dataclass(frozen=True)
class Candidate:
    """Two images that may be copies: indices into two sequences, and the turn of the second."""

    first: int
    second: int
    explained: float
    turn: Turn


def fingerprint(handle: ImageHandle) -> Fingerprint | None:
    """Decode an image and compute its fingerprint; ``None`` if its file does not exist.

    Raises:
        BadRowError: the file exists and cannot be decoded.
    """
    if not exists(handle):
        return None
    image = handle.load()
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    thumbnail = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    if isinstance(handle, ImageFile):
        return Fingerprint(image_digest(handle) or pixels, pixels, thumbnail, notes=notes_of(image))
    return Fingerprint(pixels, pixels, thumbnail, view(image), notes_of(image))


def exists(handle: ImageHandle) -> bool:
    """Whether the file of an image is there; an image without one is."""
    if isinstance(handle, ZipImage):
        return handle.exists()
    return not isinstance(handle, ImageFile | DicomImage | NiftiImage) or handle.path.exists()


def fingerprints(handles: Sequence[ImageHandle], workers: int | None = None) -> list[Fingerprint | None]:
    """Compute fingerprints in order.

    Files are decoded in threads, since Pillow's decoders release the GIL; many rendered or other images in
    processes, if the system can fork.

    Args:
        handles: distinct images.
        workers: threads or processes. Default: one per core, at most 8.
    """
    rendered = sum(not isinstance(handle, ImageFile) for handle in handles)
    can_fork = workers != 1 and "fork" in multiprocessing.get_all_start_methods()
    processes = can_fork and rendered >= _MIN_FOR_PROCESSES
    return list(in_parallel(fingerprint, handles, "Auditing images", workers, processes))


def in_parallel(
    function: Callable, items: Sequence, description: str, workers: int | None = None, processes: bool = False
) -> Iterator:
    """``map`` over threads or processes, in order, with a progress bar for long inputs on a terminal."""
    workers = workers or min(8, os.cpu_count() or 1)
    pool = (
        ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
        if processes
        else ThreadPoolExecutor(workers)
    )
    with pool:
        results = pool.map(function, items, chunksize=_CHUNK)  # threads ignore the chunk size
        yield from track(results, description, len(items))


def candidates(first: Sequence[Fingerprint], second: Sequence[Fingerprint]) -> list[Candidate]:
    """Return the pairs that pass both filters, ordered by index; flat images are in none.

    For each image of ``second``: all pairs above ``CERTAIN`` and the ``NEAREST`` best others, unrotated and
    again rotated, so that the cost of a set of similar images is linear in its size. Memory is that of one
    block of pairs.
    """
    rows = [i for i, f in enumerate(first) if not f.is_flat]
    columns = [j for j, f in enumerate(second) if not f.is_flat]
    pairs = []
    for left in track(range(0, len(columns), _BLOCK), "Comparing thumbnails", -(-len(columns) // _BLOCK)):
        inside = columns[left : left + _BLOCK]
        here = [
            Candidate(top_rows[c.first], inside[c.second], c.explained, c.turn)
            for top in range(0, len(rows), _BLOCK)
            for top_rows in [rows[top : top + _BLOCK]]
            for c in _filter_pairs(_stack(first, top_rows), _stack(second, inside))
        ]
        pairs += _keep_best(here)
    return sorted(pairs, key=lambda c: (c.second, c.first))


def _stack(prints: Sequence[Fingerprint], indices: Sequence[int]) -> Float[np.ndarray, "n 32 32"]:
    return np.stack([prints[i].thumbnail for i in indices]).astype(np.float32)


def _keep_best(pairs: list[Candidate]) -> list[Candidate]:
    best, taken = [], {}
    for candidate in sorted(pairs, key=lambda c: (-c.explained, c.first)):
        key = candidate.second, candidate.turn.quarters > 0
        if candidate.explained < CERTAIN:
            taken[key] = taken.get(key, 0) + 1
        if taken.get(key, 0) <= NEAREST:
            best.append(candidate)
    return best


def _filter_pairs(a: Float[np.ndarray, "n 32 32"], b: Float[np.ndarray, "m 32 32"]) -> Iterator[Candidate]:
    similar = [
        (turn, i, j)
        for turn, correlation in _correlations_by_turn(_low_frequencies(a), _low_frequencies(b))
        for i, j in [np.nonzero(correlation >= (MIN_ROTATED[0] if turn.quarters else MIN_CORRELATION))]
        if len(i)
    ]
    if not similar:
        return
    # Most images resemble none: compute bases only for the others.
    some_a, some_b = (np.unique(np.concatenate([pairs[k] for pairs in similar])) for k in (1, 2))
    (bases_a, flat_a), (bases_b, flat_b) = _bases(a[some_a]), _bases(b[some_b])
    for turn, i, j in similar:
        first, second = np.searchsorted(some_a, i), np.searchsorted(some_b, j)
        share = _explained_share(first, second, bases_a, turn.apply(flat_b))
        by_second = np.argsort(j, kind="stable")
        back = _explained_share(second[by_second], first[by_second], bases_b, turn.inverse().apply(flat_a))
        share[by_second] = np.maximum(share[by_second], back)
        for k in np.flatnonzero(share >= (MIN_ROTATED[1] if turn.quarters else MIN_EXPLAINED)):
            yield Candidate(int(i[k]), int(j[k]), float(share[k]), turn)


def _correlations_by_turn(
    a: Float[np.ndarray, "n 16 16"], b: Float[np.ndarray, "m 16 16"]
) -> Iterator[tuple[Turn, Float[np.ndarray, "n m"]]]:
    """Correlations of all pairs, for each turn of the second image."""
    for transposed in (False, True):
        other = b.swapaxes(1, 2) if transposed else b
        even, odd_columns, odd_rows, odd = (
            _flat(a[:, row::2, column::2]) @ _flat(other[:, row::2, column::2]).T
            for row in (0, 1)
            for column in (0, 1)
        )
        for rows in (1, -1):
            even_part, odd_part = even + rows * odd_rows, odd_columns + rows * odd
            yield _TURN[transposed, rows, 1], even_part + odd_part
            yield _TURN[transposed, rows, -1], even_part - odd_part


def _flat(images: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n p"]:
    return np.ascontiguousarray(images).reshape(len(images), -1)


def _explained_share(
    i: Integer[np.ndarray, "k"],
    j: Integer[np.ndarray, "k"],
    bases: Float[np.ndarray, "n p 5"],
    flat: Float[np.ndarray, "m s s"],
) -> Float[np.ndarray, "k"]:
    """Share of ``flat[j]`` that ``bases[i]`` explains, pair by pair; ``i`` is sorted."""
    rows, share = _flat(flat), np.empty(len(i), dtype=np.float32)
    starts = np.flatnonzero(np.diff(i, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(i)], strict=True):
        share[start:end] = ((rows[j[start:end]] @ bases[i[start]]) ** 2).sum(1)
    return share


def _low_frequencies(grey: Float[np.ndarray, "n 32 32"]) -> Float[np.ndarray, "n 16 16"]:
    """Lowest frequencies without the mean, normalised to unit length."""
    waves = dctn(grey, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES]
    waves[:, 0, 0] = 0.0
    return waves / np.linalg.norm(waves, axis=(1, 2), keepdims=True)


def _bases(
    grey: Float[np.ndarray, "n 32 32"],
) -> tuple[Float[np.ndarray, "n p 5"], Float[np.ndarray, "n s s"]]:
    """Orthonormal bases of thumbnails with their small shifts and stretches; thumbnails at unit length."""
    smooth = gaussian_filter(grey, (0, 0.7, 0.7))
    dy, dx = np.gradient(smooth, axis=(1, 2))
    moved = np.stack([smooth, dx, _X * dx, dy, _Y * dy], axis=-1)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    moved = moved.reshape(len(grey), -1, 5)
    moved -= moved.mean(1, keepdims=True)
    flat = moved[:, :, 0] / np.maximum(np.linalg.norm(moved[:, :, 0], axis=1, keepdims=True), 1e-9)
    side = SIDE - 2 * _EDGE
    return np.linalg.qr(moved)[0], flat.reshape(-1, side, side)
