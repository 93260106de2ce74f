"""Ultrasound: echoes along the beams of a probe, with speckle, attenuation, shadow and enhancement.

The plane is coronal, rotated so that the probe is on the usual side of the organ. Echoes are computed on the
probe's grid of beams and depths: each tissue reflects a share; the tissue above attenuates both ways, and the
scanner's gain compensates the attenuation of soft tissue; speckle is the magnitude of complex noise filtered
by the pulse (Wagner et al. 1983), which widens with depth in a fan.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter, map_coordinates

from medvlm_r1.phantom.physics.paint import Picture
from medvlm_r1.phantom.physics.radiology import piece_coverage, placed_pieces
from medvlm_r1.phantom.scenes.geometry import FIELD, VIEWS, Ellipsoid, coverage
from medvlm_r1.phantom.scenes.torso import Piece, Scene

ULTRASOUND_ORGANS = ("heart", "liver", "spleen", "kidney", "bladder")
REACH = 27.0  # maximum distance of lesions from the first one, so that one view shows all

# Echo level in dB (liver 0) and attenuation in dB/cm/MHz after Szabo, Diagnostic Ultrasound Imaging,
# table B.1; lesions by their signs: a cyst without echoes, calcium with a shadow.
TISSUES: dict[str, tuple[float, float]] = {
    "fat": (-7, 0.60),
    "muscle": (-5, 0.80),
    "viscera": (-3, 0.60),
    "bowel": (9, 0.75),
    "bone": (17, 9.0),
    "lung": (13, 12.0),
    "heart": (-4, 0.60),
    "chamber": (-30, 0.20),
    "liver": (0, 0.50),
    "portal": (-24, 0.20),
    "spleen": (2, 0.45),
    "kidney": (-7, 0.60),
    "sinus": (7, 0.60),
    "bladder": (-45, 0.01),
    "wall": (10, 0.60),
    "cyst": (-48, 0.01),
    "tumor": (13, 1.00),
    "rim": (12, 0.80),
    "pus": (-17, 0.40),
    "blood": (17, 0.50),
    "calcium": (21, 7.0),
}
_MHZ, _CM = 3.5, 0.4  # a unit is 4 mm
_GAIN = 0.60  # dB/cm/MHz, depth gain of the scanner
_ZOOM = 1.55
_DYNAMIC = 56.0  # dB from black to white

# Direction of the probe in degrees: 0 is above the coronal image, 90 to its right.
_DIRECTION = {"heart": 190.0, "liver": 265.0, "spleen": 95.0, "kidney": 0.0, "bladder": 180.0}


@dataclass(frozen=True)
class Probe:
    """The field of view of a probe, in units of the image."""

    radius: float  # of its curved face; 0 for a point, infinite for a straight face
    half: float  # half the opening angle, degrees; for a straight face half the width, units
    depth: float


PROBES: dict[str, Probe] = {
    "linear": Probe(math.inf, 41.0, 104.0),
    "curvilinear": Probe(42.0, 33.0, 100.0),
    "phased": Probe(2.0, 43.0, 104.0),
    "endocavity": Probe(13.0, 74.0, 92.0),
}
_BEAMS, _SAMPLES = 112, 160


def ultrasound(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Render a B-mode image; black outside the field of the probe."""
    echo, loss = _paint_plane(scene, rng, size)
    to_beams, to_picture, inside = _grid(PROBES[acquisition], size)
    echo, loss = (map_coordinates(part, to_beams, order=1, mode="nearest") for part in (echo, loss))
    received = echoes(echo, loss, PROBES[acquisition], rng)
    grey = 0.50 + received / _DYNAMIC
    return map_coordinates(grey, to_picture, order=1, mode="nearest") * inside


def echoes(
    echo: Float[np.ndarray, "beams samples"],
    loss: Float[np.ndarray, "beams samples"],
    probe: Probe,
    rng: np.random.Generator,
) -> Float[np.ndarray, "beams samples"]:
    """Return the received level in dB from echo levels (dB) and attenuations (dB/cm/MHz) along the beams."""
    step = probe.depth / _SAMPLES * _CM / _ZOOM  # cm
    depth = (np.arange(_SAMPLES, dtype=np.float32) + 0.5) * step
    lost = np.cumsum(loss, axis=1) * (2 * _MHZ * step)
    gain = (2 * _MHZ * _GAIN) * np.minimum(depth, 14.0)
    # Interfaces across the beam are bright.
    jump = np.abs(np.diff(echo, axis=1, append=echo[:, -1:]))
    level = echo + 0.22 * np.minimum(gaussian_filter(jump, (1.5, 0.5)), 25.0)
    amplitude = 10.0 ** ((level - lost + gain) / 20.0)
    noise = gaussian_filter(rng.standard_normal((2, *echo.shape), dtype=np.float32), (0, 1.1, 0.8))
    noise *= 1.0 / noise.std()
    seen = np.hypot(*(amplitude * noise))
    electronic = 10.0 ** ((gain - 80.0) / 20.0)  # the gain amplifies the receiver's noise as well
    floor = np.hypot(*(electronic * rng.standard_normal((2, *echo.shape), dtype=np.float32)))
    return 20.0 * np.log10(gaussian_filter(seen, 0.6) + floor + 1e-4)


@lru_cache(maxsize=16)
def _grid(probe: Probe, size: int) -> tuple[np.ndarray, np.ndarray, Picture]:
    """Return pixel coordinates of each beam's samples, (beam, sample) of each pixel, and the field's mask."""
    scale, top = size / FIELD, -FIELD / 2 + 4.0
    share = np.linspace(-1, 1, _BEAMS)[:, None]
    depth = (np.arange(_SAMPLES)[None] + 0.5) * probe.depth / _SAMPLES
    axis = (np.arange(size) + 0.5) / scale - FIELD / 2
    x, y = axis[None] + np.zeros((size, 1)), axis[:, None] + np.zeros(size)
    if math.isinf(probe.radius):
        u, v = share * probe.half + 0 * depth, top + depth + 0 * share
        beam, reach = x / probe.half, y - top
    else:
        half = math.radians(probe.half)
        centre = top - probe.radius * math.cos(half)  # the outermost elements of the face touch the top
        reach = probe.radius + depth
        u, v = reach * np.sin(share * half), centre + reach * np.cos(share * half)
        beam, reach = np.arctan2(x, y - centre) / half, np.hypot(x, y - centre) - probe.radius
    to_beams = np.stack([(v + FIELD / 2) * scale - 0.5, (u + FIELD / 2) * scale - 0.5])
    to_picture = np.stack([(beam + 1) / 2 * (_BEAMS - 1), reach / probe.depth * _SAMPLES - 0.5])
    inside = (np.abs(beam) <= 1) & (reach >= 0) & (reach <= probe.depth)
    return to_beams.astype(np.float32), to_picture.astype(np.float32), inside.astype(np.float32)


def _paint_plane(scene: Scene, rng: np.random.Generator, size: int) -> tuple[Picture, Picture]:
    """Return echo level and attenuation of the rotated plane per pixel."""
    view, near = VIEWS["frontal"], _View(scene)
    echo, loss = (np.full((size, size), value, np.float32) for value in TISSUES["viscera"])

    def paint(box: tuple[slice, slice], share: np.ndarray, tissue: str) -> None:
        for picture, value in zip((echo, loss), TISSUES[tissue], strict=True):
            seen = picture[box]
            seen += share * (value - seen)

    level, hosts = scene.lesions[0].centre[2], {lesion.host for lesion in scene.lesions}
    for index, part in enumerate(scene.organs):
        if index not in hosts and abs(part.solid.centre[2] - level) > part.solid.radii[2]:
            continue  # in front of the plane or behind it
        if len(scene.lesions) > 1 and part.tissue in ("lung", "bone"):
            continue  # assume a tilt of the plane in which these hide no lesion
        solid = near.placed(part.solid)
        if math.dist(solid.centre[:2], (0, 0)) > 80 + max(solid.radii[:2]):
            continue
        paint(*coverage(solid, view, size), part.tissue)
        for tissue, inner in _inside(part.tissue, solid, rng):
            paint(*coverage(inner, view, size), tissue)
    # Skin, fat and muscle under the probe.
    y = (np.arange(size, dtype=np.float32)[:, None] + 0.5) * FIELD / size - FIELD / 2
    wave = 1.2 * np.sin(np.arange(size) * 14.0 / size + rng.uniform(0, 6))
    for top, bottom, tissue in ((-70.0, -49.5, "wall"), (-49.5, -43.0, "fat"), (-43.0, -36.5, "muscle")):
        band = np.clip(y - top - 0.3 * wave, 0, 1) * np.clip(bottom + 0.3 * wave - y, 0, 1)
        paint((slice(None), slice(None)), band, tissue)
    for lesion in scene.lesions:
        for piece in placed_pieces(lesion, view):
            solid, minus = near.placed(piece.solid), near.placed(piece.minus) if piece.minus else None
            if piece.tissue == "cyst":  # its wall distinguishes it from urine
                paint(*coverage(solid, view, size), "wall")
                solid = Ellipsoid(solid.centre, tuple(r - 1.3 for r in solid.radii), solid.angle)
            paint(*piece_coverage(Piece(piece.tissue, solid, minus), size), piece.tissue)
    return echo, loss


class _View:
    """Moves, rotates and scales ellipsoids so that the lesions are below the probe."""

    def __init__(self, scene: Scene):
        xs, ys = zip(*(lesion.centre[:2] for lesion in scene.lesions), strict=True)
        self.middle = (0.5 * (min(xs) + max(xs)), 0.5 * (min(ys) + max(ys)))
        first = scene.lesions[0]
        degrees = _DIRECTION[first.organ]
        if first.organ == "kidney":  # from the flank on its side, above the pelvis
            degrees = 68.0 if first.centre[0] > 0 else 292.0
        self.angle = -math.radians(degrees)

    def placed(self, solid: Ellipsoid) -> Ellipsoid:
        """Return the ellipsoid in units of the enlarged image, which is centred on the lesions."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        dx, dy = solid.centre[0] - self.middle[0], solid.centre[1] - self.middle[1]
        x, y = _ZOOM * (cos * dx - sin * dy), _ZOOM * (sin * dx + cos * dy) + 2.0
        a, b, c = (_ZOOM * r for r in solid.radii)
        return Ellipsoid((x, y, solid.centre[2]), (a, b, c), solid.angle + self.angle)


def _inside(tissue: str, solid: Ellipsoid, rng: np.random.Generator) -> list[tuple[str, Ellipsoid]]:
    """Return structures inside an organ: chambers, sinus, vessels, wall."""
    (x, y, z), (a, b, c) = solid.centre, solid.radii
    cos, sin = math.cos(solid.angle), math.sin(solid.angle)

    def at(u: float, v: float, p: float, q: float, turn: float = 0.0) -> Ellipsoid:
        """An ellipse at (u, v) with radii (p, q), all as fractions of the organ's radii."""
        spot = (x + cos * a * u - sin * b * v, y + sin * a * u + cos * b * v, z)
        return Ellipsoid(spot, (a * p, b * q, c), solid.angle + turn)

    if tissue == "heart":
        return [("chamber", at(u, v, 0.30, 0.36)) for u in (-0.40, 0.40) for v in (-0.42, 0.38)]
    if tissue == "kidney":
        return [("sinus", at(0.05, 0.0, 0.38, 0.55)), ("chamber", at(0.05, 0.1, 0.08, 0.16))]
    if tissue == "bladder":
        return [("wall", solid), ("bladder", at(0.0, 0.0, 0.93, 0.93))]
    if tissue == "liver":
        vessels = []
        for u, v in rng.uniform(-0.6, 0.6, (5, 2)).tolist():
            turn = float(rng.uniform(0, math.pi))
            vessels += [("wall", at(u, v, 0.10, 0.10, turn)), ("portal", at(u, v, 0.07, 0.065, turn))]
        return vessels
    return []
