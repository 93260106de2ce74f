"""What two pictures have to do with each other, told from their pixels.

One picture is laid over the other (shifted and stretched along both axes, by least squares), and four
things are measured: how far it had to move, how well the fine structure agrees over the whole picture and
in its worse quarter, and how much stronger it is in one of them. A copy keeps the noise and the texture of
its original everywhere, whatever was done to it; the next slice of the same volume shares outlines and part
of the texture; another body shares outlines at most.

The limits below were set on real scans (brain MRI of 224 and breast MRI of 64 pixels a side): planted copies
beside seven hundred pairs that look alike, those around each limit seen by eye. Planted copies agree to 0.95
and more, to 0.92 in their worse quarter; neighbouring slices to 0.96 and 0.90, phantoms of different bodies
to 0.97 and 0.85. A copy that was both cropped and strongly filtered passes for a neighbouring slice.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter

EXACT = ("same file", "same bytes", "same pixels")
ALTERED = ("re-encoded", "resized", "cropped", "sharpened", "mirrored")
COPIES = (*EXACT, *ALTERED)
NEIGHBOUR = "neighbouring slice"
NAMED = "same file name"  # in another folder, where pixels could not be compared: a suspicion

LARGEST = 96  # pixels a side at which pictures are compared; below that, the smaller one's own
SMALLEST = 24
SIDE_TO_REGISTER = 40
SAME = (0.97, 0.90)  # least correlation of fine structure of an unfiltered copy: whole, worse quarter
FILTERED = ((0.94, 0.06), (0.88, 0.22))  # of a filtered one: whole, and least change (log) of strength
UNMOVED = 0.006  # of the side: what re-encoding, resizing and filtering may move
NEAR = (0.90, 0.85, 0.80)  # of neighbouring slices: coarse structure, fine structure, worse quarter
NEAR_MOVED = 0.02


@dataclass(frozen=True)
class Likeness:
    """Two pictures laid over each other.

    Attributes:
        coarse: correlation of structure of some 1.2 to 4 pixels.
        fine: correlation of structure of some 0.7 to 2 pixels.
        worst: lower quartile of the correlation of fine structure over tiles that show any.
        moved: furthest that a point of the edge moved, as a share of the side.
        gain: largest change of strength of either structure, as the size of its logarithm.
    """

    coarse: float
    fine: float
    worst: float
    moved: float
    gain: float


@dataclass(frozen=True)
class View:
    """A picture as far as it is compared.

    Attributes:
        size: width and height of the whole picture in pixels.
        grey: squeezed into a square of at most ``LARGEST`` pixels a side.
    """

    size: tuple[int, int]
    grey: UInt8[np.ndarray, "s s"]


def view(picture: Image.Image) -> View:
    """Reduce a picture to what is compared."""
    side = max(SMALLEST, min(LARGEST, *picture.size))
    return View(picture.size, np.asarray(picture.convert("L").resize((side, side), Image.Resampling.LANCZOS)))


def kind_of(first: View, second: View, mirrored: bool = False) -> tuple[str | None, float]:
    """How ``second`` follows from ``first``, and their distance.

    Args:
        first, second: of unequal pixels.
        mirrored: whether to compare with the mirror image of ``second``.

    Returns:
        One of ``ALTERED``, ``NEIGHBOUR``, or ``None`` for different pictures; and 1 minus the correlation
        of fine structure.
    """
    found = likeness(first, second, mirrored)
    still = found.moved <= UNMOVED
    filtered = still and any(found.fine >= low and found.gain >= change for low, change in FILTERED)
    distance = round(max(0.0, 1 - found.fine), 3)
    filtered = filtered and found.worst >= NEAR[2]
    if not filtered and (found.fine < SAME[0] or found.worst < SAME[1]):
        near = all(a >= b for a, b in zip((found.coarse, found.fine, found.worst), NEAR, strict=True))
        return (NEIGHBOUR if near and found.moved <= NEAR_MOVED else None), distance
    if mirrored:
        return "mirrored", distance
    if not still:
        return "cropped", distance
    if filtered:
        return "sharpened", distance
    return ("resized" if first.size != second.size else "re-encoded"), distance


def likeness(first: View, second: View, mirrored: bool = False) -> Likeness:
    """Lay ``first`` over ``second`` and compare.

    Where it agrees better as it lies than after moving it, it stays: strong filters mislead least squares.
    """
    side = min(len(first.grey), len(second.grey))
    a, b = _square(first, side), _square(second, side)
    b = np.ascontiguousarray(b[:, ::-1]) if mirrored else b
    still = _compared(a, b, np.zeros(4))
    if still.fine >= SAME[0]:
        return still
    moved = _compared(a, b, _register(a, b))
    return moved if moved.fine > still.fine else still


def _compared(a: Float[np.ndarray, "s s"], b: Float[np.ndarray, "s s"], shift: np.ndarray) -> Likeness:
    side = len(a)
    edge = slice(max(2, side // 16), -max(2, side // 16))
    moved = _move(a, shift) if shift.any() else a
    bands = []
    for small, large in ((1.2, 4.0), (0.7, 2.0)):
        bands.append(
            [(gaussian_filter(p, small) - gaussian_filter(p, large))[edge, edge] for p in (moved, b)]
        )
    coarse, fine = ([p - p.mean() for p in band] for band in bands)
    gains = [abs(float(np.log((v.std() + 1e-3) / (u.std() + 1e-3)))) for u, v in (coarse, fine)]
    return Likeness(
        coarse=_agreement(*coarse),
        fine=_agreement(*fine),
        worst=_lower_quartile(*fine),
        moved=float(max(abs(shift[0]) + abs(shift[1]), abs(shift[2]) + abs(shift[3])) / side),
        gain=max(gains),
    )


def _agreement(u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]) -> float:
    return float((u * v).sum() / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-6))


def _lower_quartile(u: Float[np.ndarray, "s s"], v: Float[np.ndarray, "s s"]) -> float:
    """Of the correlations in square tiles that show something; 0 where hardly any does."""
    n = max(4, len(u) // 14)
    k = len(u) // n
    tiles = [p[: n * k, : n * k].reshape(n, k, n, k).swapaxes(1, 2).reshape(n * n, k * k) for p in (u, v)]
    u, v = (p - p.mean(1, keepdims=True) for p in tiles)
    power = u.std(1) * v.std(1)
    shows = power >= 1.0  # a grey level of 255 in each
    if shows.sum() < 4:
        return 0.0
    return float(np.quantile((u * v).mean(1)[shows] / power[shows], 0.25))


def _square(seen: View, side: int) -> Float[np.ndarray, "s s"]:
    if len(seen.grey) == side:
        return seen.grey.astype(np.float32)
    grey = Image.fromarray(seen.grey).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(grey, dtype=np.float32)


def _move(a: Float[np.ndarray, "s s"], shift: Float[np.ndarray, "4"]) -> Float[np.ndarray, "s s"]:
    """Column x is read at x + shift[0] + shift[1] * x' with x' from -1 to 1; rows likewise by the others."""
    centre = (len(a) - 1) / 2
    scale = 1 + shift[[3, 1]] / centre
    offset = centre - scale * centre + shift[[2, 0]]
    return affine_transform(a, scale, offset=offset, order=1, mode="nearest")


def _register(a: Float[np.ndarray, "s s"], b: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "4"]:
    """The shift and stretch that lays ``a`` over ``b``: Gauss-Newton, brightness and contrast free.

    Large pictures are laid over each other at half their size: a quarter of the work.
    """
    if len(a) >= 2 * SIDE_TO_REGISTER:
        halves = (gaussian_filter(p, 0.8)[: len(p) // 2 * 2, : len(p) // 2 * 2] for p in (a, b))
        small = [h.reshape(len(h) // 2, 2, len(h) // 2, 2).mean((1, 3)) for h in halves]
        return 2 * _register(*small)
    y, x = np.mgrid[-1 : 1 : len(a) * 1j, -1 : 1 : len(a) * 1j].astype(np.float32)
    inner = slice(3, -3)
    smooth, target = gaussian_filter(a, 1.0), gaussian_filter(b, 1.0)[inner, inner].ravel()
    shift = np.zeros(4)
    for _ in range(6):
        now = _move(smooth, shift)
        dy, dx = np.gradient(now)
        basis = np.stack([now, np.ones_like(now), dx, x * dx, dy, y * dy], axis=-1)[inner, inner]
        basis = basis.reshape(-1, 6)
        fit = np.linalg.solve(basis.T @ basis + 1e-3 * np.eye(6), basis.T @ target)
        step = np.clip(fit[2:] / (fit[0] if abs(fit[0]) > 1e-3 else 1e-3), -3, 3)
        shift = shift + step
        if np.abs(step).max() < 0.02:
            break
    return shift
