"""Magnetic resonance, computed tomography and radiographs of the torso."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from medvlm_r1.phantom.physics.paint import Picture
from medvlm_r1.phantom.physics.tissues import (
    CT_TISSUES,
    CT_WINDOWS,
    MRI_ACQUISITIONS,
    MRI_TISSUES,
    XRAY_CONTRAST,
    XRAY_PHOTONS,
    XRAY_TISSUES,
    XRAY_WATER,
    XRAY_WINDOWS,
)
from medvlm_r1.phantom.scenes.geometry import (
    FIELD,
    VIEWS,
    Box,
    Ellipsoid,
    View,
    chords,
    coordinates,
    coverage,
    to_view,
)
from medvlm_r1.phantom.scenes.torso import DEPTH, Lesion, Piece, Scene

# Ribs: spacing, slope towards the front (units of y per unit of z), thickness of the cage.
_RIB_SPACING, _RIB_SLOPE, _RIB_DEPTH = 8.5, 0.45, 2.6

_FLAT = VIEWS["frontal"]  # image axes, in which a lesion's pieces are defined


def mri(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Render a coronal MR image: truncated k-space, bias field, Rician noise."""
    truth = _slice(scene, {name: mri_signal(name, acquisition) for name in (*MRI_TISSUES, "air")}, size)
    axis = coordinates(size) / (FIELD / 2)
    tilt = rng.uniform(-0.12, 0.12, size=4).astype(np.float32)
    bias = 1.0 + tilt[0] * axis + tilt[1] * axis[:, None] + tilt[2] * axis**2 + tilt[3] * (axis**2)[:, None]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    mask = 1.0 / (1.0 + np.exp((frequency - 0.40) / 0.015))  # the scanner samples a disc of k-space
    image = np.fft.irfft2(np.fft.rfft2(truth * bias) * mask.astype(np.float32), s=(size, size))
    white = MRI_ACQUISITIONS[acquisition][3]
    noise = (0.022 * white) * rng.standard_normal((2, size, size), dtype=np.float32)
    return np.hypot(image + noise[0], noise[1]) / white  # magnitude of complex data: Rician


def mri_signal(tissue: str, acquisition: str) -> float:
    """Return the signal of a tissue; 0 for air.

    Spin echo: ``PD (1 - exp(-TR/T1)) exp(-TE/T2)``; inversion recovery:
    ``PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)`` (Bernstein et al., chapter 14).
    """
    if tissue == "air":
        return 0.0
    density, t1, t2 = MRI_TISSUES[tissue]
    tr, te, ti, _ = MRI_ACQUISITIONS[acquisition]
    recovery = 1 - math.exp(-tr / t1) if ti is None else abs(1 - 2 * math.exp(-ti / t1) + math.exp(-tr / t1))
    return density * recovery * math.exp(-te / t2)


def ct(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Render a coronal CT image in a display window, with the noise of filtered back-projection.

    The ramp filter makes its power rise with spatial frequency (Riederer, Pelc and Chesler 1978).
    """
    truth = _slice(scene, CT_TISSUES, size)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    blur = np.exp(-((frequency / 0.42) ** 4))
    spectrum = np.sqrt(frequency) * blur
    white = rng.standard_normal((size, size), dtype=np.float32)
    image = np.fft.rfft2(truth) * blur + np.fft.rfft2(white) * (22.0 * spectrum)
    hounsfield = np.fft.irfft2(image, s=(size, size))
    low, high = CT_WINDOWS[acquisition]
    return (hounsfield - low) / (high - low)


def xray(scene: Scene, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Render a radiograph: Beer-Lambert law, detector blur, Poisson counts, logarithm; bone is white."""
    line = gaussian_filter(line_integral(scene, acquisition, size), 0.5 * size / FIELD)
    counts = rng.poisson(XRAY_PHOTONS * np.exp(-XRAY_WATER * line))
    measured = -np.log(np.maximum(counts, 1.0) / XRAY_PHOTONS) / XRAY_WATER
    black, white = XRAY_WINDOWS[acquisition]
    return (measured - black) / (white - black)


def _slice(scene: Scene, values: dict[str, float], size: int) -> Picture:
    """Paint the coronal reformat; each ellipsoid covers those before it."""
    picture = np.full((size, size), values["air"], dtype=np.float32)

    def paint(box: Box, share: Float[np.ndarray, "h w"], tissue: str) -> None:
        region = picture[box]
        region += share * (values[tissue] - region)

    for depth, tissue in ((0.0, "fat"), (scene.fat, "muscle")):
        for solid in scene.body:
            paint(*coverage(_shrunk(solid, depth), _FLAT, size), tissue)
    box, inside = coverage(_shrunk(scene.body[1], scene.fat + 3.0), _FLAT, size)
    y = coordinates(size)[box[0], None]
    paint(box, inside * np.clip(y - 1.0, 0, 1), "viscera")
    full = _full(*coverage(scene.cage, _FLAT, size), size)
    box, hollow = coverage(_shrunk(scene.cage, _RIB_DEPTH), _FLAT, size)
    full[box] -= hollow
    paint((slice(None), slice(None)), full * _rib_pattern(coordinates(size)[:, None], scene), "rib")
    for part in scene.organs:
        paint(*coverage(part.solid, _FLAT, size), part.tissue)
    for lesion in scene.lesions:
        for piece in placed_pieces(lesion, _FLAT):
            paint(*piece_coverage(piece, size), piece.tissue)
    return picture


def line_integral(scene: Scene, view_name: str, size: int) -> Picture:
    """Integrate attenuation relative to water along each ray, units; 0 outside the body.

    An inner ellipsoid adds the difference to the tissue around it. Where ellipsoids of one kind overlap, the
    longer chord approximates that of their union.
    """
    view, mu = VIEWS[view_name], XRAY_TISSUES
    total = np.zeros((size, size), dtype=np.float32)
    for depth, gain in ((0.0, mu["fat"]), (scene.fat, mu["muscle"] - mu["fat"])):
        total += gain * _largest([chords(_shrunk(solid, depth), view, size) for solid in scene.body], size)
    total += (mu["rib"] - mu["muscle"]) * _rib_length(scene, view, size)
    attenuation = [mu[part.tissue] for part in scene.organs]
    for lesion in scene.lesions:
        attenuation[lesion.host] = mu[lesion.organ] + (XRAY_CONTRAST if lesion.organ != "lung" else 0.0)
    for part, value in zip(scene.organs, attenuation, strict=True):
        box, length = chords(part.solid, view, size)
        total[box] += (value - mu["muscle"]) * length
    for lesion in scene.lesions:
        pieces = list(placed_pieces(lesion, view))
        for tissue in {piece.tissue: None for piece in pieces}:
            shares = [piece_coverage(piece, size) for piece in pieces if piece.tissue == tissue]
            thickness = 2.0 * DEPTH * _largest(shares, size)
            total += (mu[tissue] - attenuation[lesion.host]) * thickness
    return total


def piece_coverage(piece: Piece, size: int) -> tuple[Box, Float[np.ndarray, "h w"]]:
    """Return the share of each pixel that a lesion's piece covers, without its cut-out."""
    box, share = coverage(piece.solid, _FLAT, size)
    if piece.minus:
        share = share * (1.0 - _full(*coverage(piece.minus, _FLAT, size), size)[box])
    return box, share


def placed_pieces(lesion: Lesion, view: View) -> Iterator[Piece]:
    """Yield the lesion's pieces at the lesion's position in a view."""
    u, v, w = to_view(lesion.centre, view)

    def moved(solid: Ellipsoid) -> Ellipsoid:
        x, y, z = solid.centre
        return Ellipsoid((x + u, y + v, z + w), solid.radii, solid.angle)

    for piece in lesion.pieces:
        yield Piece(piece.tissue, moved(piece.solid), moved(piece.minus) if piece.minus else None)


def _shrunk(solid: Ellipsoid, depth: float) -> Ellipsoid:
    """Return the ellipsoid with radii smaller by ``depth`` units."""
    a, b, c = (radius - depth for radius in solid.radii)
    return Ellipsoid(solid.centre, (a, b, c), solid.angle)


def _full(box: Box, values: Float[np.ndarray, "h w"], size: int) -> Picture:
    """Return an image with ``values`` inside ``box`` and 0 elsewhere."""
    full = np.zeros((size, size), dtype=np.float32)
    full[box] = values
    return full


def _largest(pieces: list[tuple[Box, Float[np.ndarray, "_ _"]]], size: int) -> Picture:
    """Return the pixelwise maximum of arrays given inside their own boxes; 0 elsewhere."""
    full = np.zeros((size, size), dtype=np.float32)
    for box, values in pieces:
        np.maximum(full[box], values, out=full[box])
    return full


def _rib_pattern(y: Float[np.ndarray, "..."], scene: Scene) -> Float[np.ndarray, "..."]:
    """Return 1 on a rib and 0 between two ribs at height ``y`` of the cage."""
    wave = np.cos((2 * np.pi) * (y / _RIB_SPACING + scene.ribs))
    return np.clip(2.5 * wave + 0.3, 0, 1) * np.clip((17 - y) / 2, 0, 1) * np.clip((y + 50) / 4, 0, 1)


def _rib_length(scene: Scene, view: View, size: int) -> Picture:
    """Return the path length through ribs: a ray crosses the cage twice, and ribs slope towards the front."""
    box, outer = chords(scene.cage, view, size)
    wall = outer - _full(*chords(_shrunk(scene.cage, _RIB_DEPTH), view, size), size)[box]
    if abs(view[2][1]) > 0.9:  # a ray along the spine crosses ribs and gaps
        share = np.float32(0.3)
    else:
        y = coordinates(size)[box[0], None]
        level = y - (_RIB_SLOPE * view[0][2]) * coordinates(size)[None, box[1]]
        # the ray crosses the cage half a chord from its centre
        reach = (0.5 * _RIB_SLOPE * view[2][2]) * outer
        share = 0.5 * (_rib_pattern(level - reach, scene) + _rib_pattern(level + reach, scene))
    return _full(box, np.minimum(wall, 12.0) * share, size)
