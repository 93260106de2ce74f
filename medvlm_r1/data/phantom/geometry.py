"""Views of ellipsoids: silhouettes for slices, chord lengths for projections.

World axes are those of a coronal picture: x to its right (the patient's left), y down (to the feet),
z towards the viewer (anterior). The unit is 1/112 of the field of view, about 4 mm; the origin is the
middle of the picture. A view has axes u (right), v (down) and w (towards the source).

An ellipsoid with centre c and shape matrix ``S = R diag(radii^2) R^T`` looks, along w, like the ellipse
``q(x) = x^T S2^-1 x <= 1`` with ``S2 = S[:2, :2]`` and ``x = (u, v) - c``. The ray at x runs inside it for
``2 sqrt((1 - q) s)`` with the Schur complement ``s = S_ww - S_w2 S2^-1 S_2w``.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FIELD = 112.0  # units across the picture

_DIAGONAL = math.sqrt(0.5)
# Rows u, v, w in world axes. The lateral view has the front on the left; the axial one, on top.
VIEWS: dict[str, Float[np.ndarray, "3 3"]] = {
    "frontal": np.eye(3),
    "lateral": np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    "oblique": np.array([[_DIAGONAL, 0.0, -_DIAGONAL], [0.0, 1.0, 0.0], [_DIAGONAL, 0.0, _DIAGONAL]]),
    "axial": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
}


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid: centre (x, y, z) and radii in units, turned by ``angle`` radians about z."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle: float = 0.0

    def seen(self, view: Float[np.ndarray, "3 3"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Centre and shape matrix in the axes of ``view``."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        axes = view @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return view @ np.array(self.centre), (axes * np.square(self.radii)) @ axes.T


Box = tuple[slice, slice]


def _ellipse(
    solid: Ellipsoid, view: Float[np.ndarray, "3 3"], size: int
) -> tuple[Box, Float[np.ndarray, "h w"], float, float]:
    """Bounding box in pixels, q inside it, mean radius of the silhouette, sqrt(s)."""
    centre, shape = solid.seen(view)
    uu, uv, vv = shape[0, 0], shape[0, 1], shape[1, 1]
    determinant = uu * vv - uv * uv
    scale = size / FIELD
    box = []
    for middle, half in ((centre[1], math.sqrt(vv)), (centre[0], math.sqrt(uu))):
        low = (middle - half - 1.0 + FIELD / 2) * scale
        high = (middle + half + 1.0 + FIELD / 2) * scale
        box.append(slice(min(max(math.floor(low), 0), size), min(max(math.ceil(high), 0), size)))
    v = ((np.arange(box[0].start, box[0].stop, dtype=np.float32) + 0.5) / scale - FIELD / 2 - centre[1])[
        :, None
    ]
    u = ((np.arange(box[1].start, box[1].stop, dtype=np.float32) + 0.5) / scale - FIELD / 2 - centre[0])[None]
    u, v = u.astype(np.float32), v.astype(np.float32)
    q = (vv / determinant * u * u) + (uu / determinant * v * v)
    if abs(uv) > 1e-9:
        q = q - (2 * uv / determinant) * u * v
    cross = shape[2, :2]
    explained = (vv * cross[0] ** 2 - 2 * uv * cross[0] * cross[1] + uu * cross[1] ** 2) / determinant
    return (box[0], box[1]), q, determinant**0.25, math.sqrt(max(shape[2, 2] - explained, 0.0))


def coverage(
    solid: Ellipsoid, view: Float[np.ndarray, "3 3"], size: int
) -> tuple[Box, Float[np.ndarray, "h w"]]:
    """Share of each pixel that the silhouette covers, with an edge one pixel wide.

    Returns:
        The box of pixels that the solid can touch, and the share (0 to 1) inside that box.
    """
    box, q, radius, _ = _ellipse(solid, view, size)
    return box, np.clip((1.0 - np.sqrt(q)) * (radius * size / FIELD) + 0.5, 0.0, 1.0)


def chords(
    solid: Ellipsoid, view: Float[np.ndarray, "3 3"], size: int
) -> tuple[Box, Float[np.ndarray, "h w"]]:
    """Length in units of each pixel's ray inside the solid.

    Returns:
        The box of pixels that the solid can touch, and the lengths inside that box.
    """
    box, q, _, half = _ellipse(solid, view, size)
    return box, (2.0 * half) * np.sqrt(np.maximum(1.0 - q, 0.0))


def coordinates(size: int) -> Float[np.ndarray, "size"]:
    """Pixel centres along one axis, in units."""
    return ((np.arange(size, dtype=np.float32) + 0.5) * (FIELD / size) - FIELD / 2).astype(np.float32)
