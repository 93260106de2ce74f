"""One function per modality: scene and acquisition in, picture out.

Every function has the signature ``(scene, acquisition, rng, size) -> [size, size]`` with grey values
from 0 to 1, and stands in ``PHYSICS`` under its modality's name. The tissue tables begin with values of
the literature and then exaggerate the lesions, as after contrast medium, because each lesion must be seen
against each organ in each acquisition.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from medvlm_r1.data.phantom.geometry import (
    FIELD,
    VIEWS,
    Box,
    Ellipsoid,
    View,
    chords,
    coordinates,
    coverage,
    turned,
)
from medvlm_r1.data.phantom.scene import Lesion, Piece, Scene

Picture = Float[np.ndarray, "size size"]

# Proton density (water 1), T1 and T2 in ms at 1.5 T after Stanisz et al. 2005 and Bernstein et al.,
# "Handbook of MRI Pulse Sequences"; parenchyma with the short T1 of an examination after gadolinium.
MRI_TISSUES: dict[str, tuple[float, float, float]] = {
    "fat": (0.90, 260, 75),
    "muscle": (0.68, 900, 40),
    "viscera": (0.62, 700, 48),
    "bowel": (0.70, 800, 60),
    "bone": (0.50, 420, 55),
    "rib": (0.12, 500, 40),
    "lung": (0.14, 900, 40),
    "heart": (0.72, 480, 50),
    "liver": (0.70, 560, 45),
    "spleen": (0.74, 620, 75),
    "kidney": (0.76, 420, 66),
    "bladder": (0.75, 4200, 160),
    "cyst": (1.00, 2000, 400),
    "tumor": (1.00, 240, 110),
    "rim": (1.00, 230, 150),
    "pus": (0.10, 2500, 40),
    "blood": (0.98, 220, 160),
    "calcium": (1.00, 150, 140),
}

# TR, TE, TI (ms; TI None for spin echo) and the signal shown as white.
MRI_ACQUISITIONS: dict[str, tuple[float, float, float | None, float]] = {
    "T1": (500, 12, None, 0.80),
    "T2": (4000, 100, None, 0.62),
    "PD": (4000, 15, None, 0.92),
    "FLAIR": (9000, 80, 2500, 0.50),
}

# Hounsfield units, portal venous phase.
CT_TISSUES: dict[str, float] = {
    "air": -1000,
    "fat": -95,
    "muscle": 50,
    "viscera": 30,
    "bowel": 45,
    "bone": 380,
    "rib": 650,
    "lung": -800,
    "heart": 85,
    "liver": 90,
    "spleen": 95,
    "kidney": 105,
    "bladder": 80,
    "cyst": 0,
    "tumor": 330,
    "rim": 380,
    "pus": -120,
    "blood": 330,
    "calcium": 800,
}

# Lower and upper end of the display window in HU.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "abdominal": (-160, 240),
    "bone": (-150, 1000),
    "pulmonary": (-1050, 420),
    "cerebral": (-30, 140),
}

# Attenuation relative to water at about 60 keV; lesions as if filled with contrast medium.
XRAY_TISSUES: dict[str, float] = {
    "fat": 0.9,
    "muscle": 1.0,
    "viscera": 1.0,
    "bowel": 0.96,
    "bone": 1.7,
    "rib": 2.0,
    "lung": 0.3,
    "heart": 1.06,
    "liver": 1.06,
    "spleen": 1.06,
    "kidney": 1.06,
    "bladder": 1.06,
    "cyst": 2.4,
    "tumor": 3.2,
    "rim": 3.6,
    "pus": 0.2,
    "blood": 3.2,
    "calcium": 6.0,
}
XRAY_CONTRAST = 0.3  # what contrast medium adds to an organ under examination
XRAY_PHOTONS = 40_000.0  # per pixel of the open beam
XRAY_WATER = 0.05  # attenuation of water per unit (4 mm), softened: a grid and a hard beam
# Line integrals (units of water) shown as black and as white: the body is longest along its axis.
XRAY_WINDOWS: dict[str, tuple[float, float]] = {
    "frontal": (0.0, 80.0),
    "lateral": (10.0, 105.0),
    "oblique": (5.0, 90.0),
    "axial": (50.0, 150.0),
}

_RIB_SPACING, _RIB_SLOPE, _RIB_DEPTH = 8.5, 0.45, 2.6


def mri(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Coronal magnetic resonance image: truncated k-space, bias field, Rician noise."""
    truth = _slice(scene, {name: mri_signal(name, acquisition) for name in (*MRI_TISSUES, "air")}, size)
    axis = coordinates(size) / (FIELD / 2)
    tilt = rng.uniform(-0.12, 0.12, size=4).astype(np.float32)
    bias = 1.0 + tilt[0] * axis + tilt[1] * axis[:, None] + tilt[2] * axis**2 + tilt[3] * (axis**2)[:, None]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    kept = 1.0 / (1.0 + np.exp((frequency - 0.40) / 0.015))  # the scanner reads a disc of k-space only
    seen = np.fft.irfft2(np.fft.rfft2(truth * bias) * kept.astype(np.float32), s=(size, size))
    white = MRI_ACQUISITIONS[acquisition][3]
    noise = (0.022 * white) * rng.standard_normal((2, size, size), dtype=np.float32)
    return np.hypot(seen + noise[0], noise[1]) / white  # magnitude of complex data: Rician


def mri_signal(tissue: str, acquisition: str) -> float:
    """Signal of a tissue; air gives none.

    Spin echo: ``PD (1 - exp(-TR/T1)) exp(-TE/T2)``; inversion recovery:
    ``PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)`` (Bernstein et al., chapters 14.1 and 14.2).
    """
    if tissue == "air":
        return 0.0
    density, t1, t2 = MRI_TISSUES[tissue]
    tr, te, ti, _ = MRI_ACQUISITIONS[acquisition]
    recovery = 1 - math.exp(-tr / t1) if ti is None else abs(1 - 2 * math.exp(-ti / t1) + math.exp(-tr / t1))
    return density * recovery * math.exp(-te / t2)


def ct(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Coronal computed tomography in a display window, with the noise of filtered back-projection.

    The ramp filter leaves noise whose power rises with spatial frequency (Riederer, Pelc and Chesler 1978).
    """
    truth = _slice(scene, CT_TISSUES, size)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    blur = np.exp(-((frequency / 0.42) ** 4))
    spectrum = np.sqrt(frequency) * blur
    white = rng.standard_normal((size, size), dtype=np.float32)
    hounsfield = np.fft.irfft2(
        np.fft.rfft2(truth) * blur + np.fft.rfft2(white) * (22.0 * spectrum), s=(size, size)
    )
    low, high = CT_WINDOWS[acquisition]
    return (hounsfield - low) / (high - low)


def xray(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Radiograph: Beer-Lambert law, blur of the detector, Poisson counts, logarithm; bone is white."""
    line = gaussian_filter(line_integral(scene, acquisition, size), 0.5 * size / FIELD)
    counts = rng.poisson(XRAY_PHOTONS * np.exp(-XRAY_WATER * line))
    measured = -np.log(np.maximum(counts, 1.0) / XRAY_PHOTONS) / XRAY_WATER
    black, white = XRAY_WINDOWS[acquisition]
    return (measured - black) / (white - black)


PHYSICS: dict[str, Callable[[Scene, str, np.random.Generator, int], Picture]] = {
    "mri": mri,
    "ct": ct,
    "xray": xray,
}


def _slice(scene: Scene, values: dict[str, float], size: int) -> Picture:
    """Paint the coronal reformat: each solid covers what was painted before it."""
    picture = np.full((size, size), values["air"], dtype=np.float32)
    view = VIEWS["frontal"]

    def paint(box: Box, share: Float[np.ndarray, "h w"], tissue: str) -> None:
        picture[box] += share * (values[tissue] - picture[box])

    for depth, tissue in ((0.0, "fat"), (scene.fat, "muscle")):
        for solid in scene.body:
            paint(*coverage(_shrunk(solid, depth), view, size), tissue)
    box, inside = coverage(_shrunk(scene.body[1], scene.fat + 3.0), view, size)
    y = coordinates(size)[box[0], None]
    paint(box, inside * np.clip(y - 1.0, 0, 1), "viscera")
    box, shell = coverage(scene.cage, view, size)
    inner_box, hollow = coverage(_shrunk(scene.cage, _RIB_DEPTH), view, size)
    full = np.zeros((size, size), dtype=np.float32)
    full[box] = shell
    full[inner_box] -= hollow
    paint(_ALL, full * _rib_pattern(coordinates(size)[:, None], scene), "rib")
    for part in scene.organs:
        paint(*coverage(part.solid, view, size), part.tissue)
    for lesion in scene.lesions:
        for piece in _seen(lesion, view):
            box, share = coverage(piece.solid, _FLAT, size)
            if piece.minus:
                cut_box, cut = coverage(piece.minus, _FLAT, size)
                share = share * (1.0 - _within(cut_box, cut, box, size))
            paint(box, share, piece.tissue)
    return picture


_FLAT = VIEWS["frontal"]
_ALL: Box = (slice(None), slice(None))


def line_integral(scene: Scene, view_name: str, size: int) -> Picture:
    """Attenuation relative to water, summed along each ray, in units; 0 outside the body.

    An inner solid adds its difference to the tissue around it. Where solids of one kind overlap, the
    longer chord counts, which stands in for the chord of their union.
    """
    view, mu = VIEWS[view_name], XRAY_TISSUES
    total = np.zeros((size, size), dtype=np.float32)
    for depth, gain in ((0.0, mu["fat"]), (scene.fat, mu["muscle"] - mu["fat"])):
        total += gain * _longest([chords(_shrunk(solid, depth), view, size) for solid in scene.body], size)
    total += (mu["rib"] - mu["muscle"]) * _rib_length(scene, view, size)
    examined = {lesion.host for lesion in scene.lesions}
    for index, part in enumerate(scene.organs):
        box, length = chords(part.solid, view, size)
        contrast = XRAY_CONTRAST if index in examined and part.tissue != "lung" else 0.0
        total[box] += (mu[part.tissue] + contrast - mu["muscle"]) * length
    for lesion in scene.lesions:
        pieces = list(_seen(lesion, view))
        for tissue in {piece.tissue: None for piece in pieces}:
            lengths = [_cut_chords(piece, size) for piece in pieces if piece.tissue == tissue]
            total += (mu[tissue] - mu["muscle"]) * _longest(lengths, size)
    return total


def _cut_chords(piece: Piece, size: int) -> tuple[Box, Float[np.ndarray, "h w"]]:
    """Chords of a lesion's piece; both of its solids are symmetric about one plane, so lengths subtract."""
    box, length = chords(piece.solid, _FLAT, size)
    if piece.minus:
        cut_box, cut = chords(piece.minus, _FLAT, size)
        length = np.maximum(length - _within(cut_box, cut, box, size), 0.0)
    return box, length


def _seen(lesion: Lesion, view: View) -> Iterator[Piece]:
    """The lesion's pieces at its place in the picture."""
    u, v, w = turned(lesion.centre, view)

    def moved(solid: Ellipsoid) -> Ellipsoid:
        x, y, z = solid.centre
        return Ellipsoid((x + u, y + v, z + w), solid.radii, solid.angle)

    for piece in lesion.pieces:
        yield Piece(piece.tissue, moved(piece.solid), moved(piece.minus) if piece.minus else None)


def _shrunk(solid: Ellipsoid, depth: float) -> Ellipsoid:
    """The solid with ``depth`` units taken off all round."""
    a, b, c = (radius - depth for radius in solid.radii)
    return Ellipsoid(solid.centre, (a, b, c), solid.angle)


def _within(box: Box, values: Float[np.ndarray, "h w"], target: Box, size: int) -> Float[np.ndarray, "a b"]:
    """What ``values`` holds inside the box ``target``; 0 where it holds nothing."""
    full = np.zeros((size, size), dtype=np.float32)
    full[box] = values
    return full[target]


def _longest(pieces: list[tuple[Box, Float[np.ndarray, "h w"]]], size: int) -> Picture:
    full = np.zeros((size, size), dtype=np.float32)
    for box, length in pieces:
        np.maximum(full[box], length, out=full[box])
    return full


def _rib_pattern(y: Float[np.ndarray, "..."], scene: Scene) -> Float[np.ndarray, "..."]:
    """1 on a rib, 0 between two, along the height ``y`` at which the cage is met."""
    wave = np.cos((2 * np.pi) * (y / _RIB_SPACING + scene.ribs))
    return np.clip(2.5 * wave + 0.3, 0, 1) * np.clip((17 - y) / 2, 0, 1) * np.clip((y + 50) / 4, 0, 1)


def _rib_length(scene: Scene, view: View, size: int) -> Picture:
    """Path through ribs: a ray meets the cage in front and behind, and ribs fall towards the front."""
    box, outer = chords(scene.cage, view, size)
    inner_box, inner = chords(_shrunk(scene.cage, _RIB_DEPTH), view, size)
    wall = outer - _within(inner_box, inner, box, size)
    if abs(view[2][1]) > 0.9:  # along the spine, a ray runs through ribs and gaps alike
        share = np.float32(0.3)
    else:
        y = coordinates(size)[box[0], None]
        level = y - (_RIB_SLOPE * view[0][2]) * coordinates(size)[None, box[1]]
        reach = (
            0.5 * _RIB_SLOPE * view[2][2]
        ) * outer  # z, in front and behind, where the ray meets the cage
        share = 0.5 * (_rib_pattern(level - reach, scene) + _rib_pattern(level + reach, scene))
    full = np.zeros((size, size), dtype=np.float32)
    full[box] = np.minimum(wall, 12.0) * share
    return full
