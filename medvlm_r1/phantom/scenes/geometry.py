"""Views of ellipsoids: silhouettes for slices, chord lengths for projections.

World axes are those of a coronal image: x to its right (the patient's left), y down (to the feet), z towards
the viewer (anterior). The unit is 1/112 of the field of view, about 4 mm; the origin is the centre of the
image. A view has axes u (right), v (down) and w (towards the source).

The projection of an ellipsoid with centre c and shape matrix ``S = R diag(radii^2) R^T`` along w is the
ellipse ``q(x) = x^T S2^-1 x <= 1`` with ``S2 = S[:2, :2]`` and ``x = (u, v) - c``. The ray at x has length
``2 sqrt((1 - q) s)`` inside it, with the Schur complement ``s = S_ww - S_w2 S2^-1 S_2w``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

FIELD = 112.0  # width of the image in units

Point = tuple[float, float, float]
View = tuple[Point, Point, Point]  # the axes u, v, w in world axes
Box = tuple[slice, slice]

_DIAGONAL = math.sqrt(0.5)
# The patient's front is on the left in the lateral view and on top in the axial one.
VIEWS: dict[str, View] = {
    "frontal": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "lateral": ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    "oblique": ((_DIAGONAL, 0.0, -_DIAGONAL), (0.0, 1.0, 0.0), (_DIAGONAL, 0.0, _DIAGONAL)),
    "axial": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
}


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid: centre (x, y, z) and radii in units, rotated by ``angle`` radians about z."""

    centre: Point
    radii: Point
    angle: float = 0.0


def to_view(point: Point, view: View) -> Point:
    """Return a world point in the axes u, v, w of ``view``."""
    x, y, z = point
    (a, b, c), (d, e, f), (g, h, i) = view
    return a * x + b * y + c * z, d * x + e * y + f * z, g * x + h * y + i * z


def _ellipse(solid: Ellipsoid, view: View, size: int) -> tuple[Box, Float[np.ndarray, "h w"], float, float]:
    """Bounding box in pixels, q inside it, mean radius of the silhouette, and sqrt(s)."""
    # Plain floats: for ellipsoids of a few pixels, 3 x 3 arrays would cost more than the image.
    middle = to_view(solid.centre, view)
    cos, sin = math.cos(solid.angle), math.sin(solid.angle)
    (a, b, c), (d, e, f), (g, h, i) = (
        [(cos * a + sin * b) * solid.radii[0], (cos * b - sin * a) * solid.radii[1], c * solid.radii[2]]
        for a, b, c in view
    )
    uu, uv, uw = a * a + b * b + c * c, a * d + b * e + c * f, a * g + b * h + c * i
    vv, vw, ww = d * d + e * e + f * f, d * g + e * h + f * i, g * g + h * h + i * i
    determinant = uu * vv - uv * uv
    scale = size / FIELD
    rows, columns = _span(middle[1], math.sqrt(vv), scale, size), _span(middle[0], math.sqrt(uu), scale, size)
    axis = coordinates(size)
    v, u = axis[rows, None] - middle[1], axis[None, columns] - middle[0]
    q = (vv / determinant) * (u * u) + (uu / determinant) * (v * v)
    if abs(uv) > 1e-9:
        q -= (2 * uv / determinant * u) * v
    explained = (vv * uw * uw - 2 * uv * uw * vw + uu * vw * vw) / determinant
    return (rows, columns), q, determinant**0.25, math.sqrt(max(ww - explained, 0.0))


def _span(middle: float, half: float, scale: float, size: int) -> slice:
    """Pixels within ``half`` + 1 units of ``middle``."""
    low = math.floor((middle - half - 1.0 + FIELD / 2) * scale)
    high = math.ceil((middle + half + 1.0 + FIELD / 2) * scale)
    return slice(min(max(low, 0), size), min(max(high, 0), size))


def coverage(solid: Ellipsoid, view: View, size: int) -> tuple[Box, Float[np.ndarray, "h w"]]:
    """Return the bounding box in pixels, and the share of each pixel that the silhouette covers.

    Its edge is one pixel wide.
    """
    box, q, radius, _ = _ellipse(solid, view, size)
    share = np.sqrt(q, out=q)
    np.subtract(1.0, share, out=share)
    share *= radius * size / FIELD
    share += 0.5
    return box, np.clip(share, 0.0, 1.0, out=share)


def chords(solid: Ellipsoid, view: View, size: int) -> tuple[Box, Float[np.ndarray, "h w"]]:
    """Return the bounding box in pixels, and the length in units of each pixel's ray inside the ellipsoid."""
    box, q, _, half = _ellipse(solid, view, size)
    return box, (2.0 * half) * np.sqrt(np.maximum(1.0 - q, 0.0))


def draw_apart(
    count: int,
    apart: float,
    draw: Callable[[list], tuple],
    fits: Callable[[tuple, list, float], bool],
) -> list:
    """Draw ``count`` places, each of which fits those before at a distance of ``apart`` units."""
    places: list = []
    tries = 0
    while len(places) < count:
        tries += 1
        if tries % 60 == 0:  # dead end: start again with a smaller distance
            places, apart = [], 0.97 * apart
        place = draw(places)
        if fits(place, places, apart):
            places.append(place)
    return places


@lru_cache(maxsize=8)
def coordinates(size: int) -> Float[np.ndarray, "size"]:
    """Return the pixel centres along one axis in units."""
    return ((np.arange(size, dtype=np.float32) + 0.5) * (FIELD / size) - FIELD / 2).astype(np.float32)
