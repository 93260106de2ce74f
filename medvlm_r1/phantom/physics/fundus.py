"""Fundus photography: light reflected by choroid and pigment epithelium, absorbed by the layers in front.

In colour, reflectance is ``base exp(-sum of absorber * coefficient)`` with coefficients for red, green and
blue: haemoglobin absorbs green and blue (Prahl's tables), melanin mostly blue, the macula's xanthophyll only
blue (Delori and Pflibsen, Applied Optics 1989). Red-free is the green channel. Angiography shows
fluorescein, autofluorescence uncovered lipofuscin (Delori et al. 1995).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from medvlm_r1.phantom.physics.paint import Picture, axes, blobs, cloud, soft, strokes
from medvlm_r1.phantom.scenes.retina import Retina
from medvlm_r1.phantom.spec import by_name

_BASE = np.array([0.84, 0.42, 0.20], np.float32)
_BLOOD = np.array([0.35, 1.00, 1.05], np.float32)
_MELANIN = np.array([0.50, 0.85, 1.20], np.float32)
_XANTHOPHYLL = np.array([0.05, 0.30, 1.40], np.float32)
_DISC = np.array([0.98, 0.78, 0.50], np.float32)
_CUP = np.array([1.00, 0.93, 0.72], np.float32)
_FAT = np.array([0.99, 0.89, 0.42], np.float32)  # drusen and exudates
_GREY = np.array([0.70, 0.62, 0.50], np.float32)  # swollen retina
_SCLERA = np.array([0.98, 0.80, 0.58], np.float32)


@dataclass
class _Layers:
    """Layers of the retina per pixel, 0 to 1 unless noted."""

    disc: Picture
    cup: Picture
    macula: Picture
    arteries: Picture
    veins: Picture
    tissue: Picture  # mottling, mean 0
    drusen: Picture
    exudate: Picture
    hemorrhage: Picture
    edema: Picture
    atrophy: Picture
    choroid: Picture  # large vessels behind the pigment epithelium


def fundus(scene: Retina, acquisition: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Render a fundus photograph: ``[size, size, 3]`` in colour, else ``[size, size]``."""
    layers = _rasterize(scene, size)
    picture = FUNDUS_MODES[acquisition](layers)
    x, y = axes(size)
    far = np.hypot(x, y)
    off_axis = np.hypot(x - rng.uniform(-8, 8), y - rng.uniform(-8, 8))
    light = (1.0 - 0.45 * (off_axis / 56.0) ** 2.5) * soft(54.0 - far, 1.2)
    noise = 0.016 * rng.standard_normal((size, size), dtype=np.float32)
    if picture.ndim == 3:
        light, noise = light[..., None], noise[..., None]
    return np.maximum(picture * light, 0.012) + noise


def _rasterize(scene: Retina, size: int) -> _Layers:
    """Draw the layers of the scene."""
    rng = np.random.default_rng(scene.key)
    x, y = axes(size)
    from_disc = np.hypot(x - scene.disc[0], (y - scene.disc[1]) / 1.08)
    from_fovea = np.hypot(x - scene.fovea[0], y - scene.fovea[1])
    lines = {kind: [(v.points, v.width) for v in scene.vessels if v.artery == kind] for kind in (True, False)}
    layers = _Layers(
        **dict.fromkeys(_LESIONS, np.zeros((size, size), np.float32)),
        disc=soft(scene.disc_radius - from_disc, 1.2),
        cup=soft(scene.cup * scene.disc_radius - from_disc, 2.5),
        macula=np.exp(-((from_fovea / 9.0) ** 2)),
        arteries=strokes(lines[True], size),
        veins=strokes(lines[False], size),
        tissue=cloud(rng, 3.5, size),
        choroid=soft(np.abs(cloud(rng, 4.5, size)) - 0.45, 0.5),
    )
    inside = np.max([lesion.inside(x, y) for lesion in scene.lesions], axis=0)
    setattr(layers, scene.disease, _LESIONS[scene.disease](scene, inside, rng, size))
    return layers


# Lesions -----------------------------------------------------------------------------------------------


def _drusen(scene: Retina, inside: Picture, rng: np.random.Generator, size: int) -> Picture:
    """Soft round deposits, close together."""
    spots, radii = _inside_each(scene, 0.8, rng)
    return blobs(spots, radii * rng.uniform(0.24, 0.34, len(spots)), size)


def _exudate(scene: Retina, inside: Picture, rng: np.random.Generator, size: int) -> Picture:
    """Small sharp deposits in a ring."""
    rings = []
    for lesion in scene.lesions:
        number = round(5 + 0.9 * lesion.radius)
        turn = 2 * math.pi * (np.arange(number) + rng.uniform(-0.2, 0.2, number)) / number
        far = lesion.radius * rng.uniform(0.80, 0.98, number)
        rings.append(np.stack([far * np.cos(turn), far * np.sin(turn)], -1) + lesion.centre)
    spots = np.concatenate(rings)
    return blobs(spots, rng.uniform(0.9, 1.45, len(spots)), size)


def _hemorrhage(scene: Retina, inside: Picture, rng: np.random.Generator, size: int) -> Picture:
    """A blot with feathered edges."""
    return soft(inside + 0.8 * cloud(rng, 2.5, size), 1.0)


def _edema(scene: Retina, inside: Picture, rng: np.random.Generator, size: int) -> Picture:
    """Swelling with cystic petals around its centre."""
    x, y = axes(size)
    petals = np.zeros((size, size), np.float32)
    for lesion in scene.lesions:
        dx, dy = x - lesion.centre[0], y - lesion.centre[1]
        far = np.hypot(dx, dy) / lesion.radius
        flower = np.cos(7 * np.arctan2(dy, dx) + rng.uniform(0, 6)) * soft(far - 0.18, 0.2)
        petals = np.maximum(petals, soft(lesion.inside(x, y), 1.5) * (0.55 + 0.45 * flower))
    return petals


def _atrophy(scene: Retina, inside: Picture, rng: np.random.Generator, size: int) -> Picture:
    """A patch without pigment, with a sharp border."""
    return soft(inside, 0.8)


_LESIONS = by_name(_drusen, _exudate, _hemorrhage, _edema, _atrophy)


def _inside_each(scene: Retina, reach: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return nine points on a Fermat spiral inside each lesion, and the lesion's radius for each point."""
    number = np.arange(9)
    turn = number * math.pi * (3 - math.sqrt(5)) + rng.uniform(0, 6)
    far = reach * np.sqrt((number + 0.4) / 9)
    flower = np.stack([far * np.cos(turn), far * np.sin(turn)], -1)
    spots = np.concatenate([flower * lesion.radius + lesion.centre for lesion in scene.lesions])
    return spots, np.repeat([lesion.radius for lesion in scene.lesions], 9)


# Modes -------------------------------------------------------------------------------------------------


def _color(layers: _Layers) -> Float[np.ndarray, "size size 3"]:
    bare = 1.0 - layers.atrophy
    melanin = (0.20 + 0.55 * layers.macula + 0.05 * layers.tissue) * bare
    xanthophyll = 0.55 * layers.macula
    blood = 0.05 + 0.12 * layers.choroid * (0.25 + 3.0 * layers.atrophy)
    paint = _BASE * np.exp(
        -melanin[..., None] * _MELANIN - xanthophyll[..., None] * _XANTHOPHYLL - blood[..., None] * _BLOOD
    )
    paint = _over(paint, _SCLERA, layers.atrophy * (0.75 - 0.4 * layers.choroid))
    paint = _over(paint, _DISC, layers.disc * (1 - 0.6 * layers.atrophy))
    paint = _over(paint, _CUP, 0.8 * layers.cup)
    paint = _over(paint, _FAT, 0.72 * layers.drusen)
    paint = _over(paint, _GREY, 0.80 * layers.edema)
    vessels = 0.75 * layers.arteries + 1.15 * layers.veins
    paint = paint * np.exp(-(vessels + 1.7 * layers.hemorrhage)[..., None] * _BLOOD)
    return _over(paint, _FAT * 1.02, 0.95 * layers.exudate)


def _redfree(layers: _Layers) -> Picture:
    return np.clip(1.25 * _color(layers)[..., 1] - 0.06, 0.0, 1.0)


def _angiography(layers: _Layers) -> Picture:
    """Early venous phase: vessels are filled, pigment hides the choroid, blood blocks fluorescence."""
    choroid = (0.24 + 0.03 * layers.tissue) * (1.0 - 0.75 * layers.macula)
    choroid = np.maximum(choroid, layers.atrophy * (0.55 + 0.25 * layers.choroid))
    picture = np.maximum(choroid, 0.42 * layers.disc)
    picture = np.maximum(picture, 0.62 * layers.drusen)
    picture = np.maximum(picture, np.maximum(0.95 * layers.arteries, 0.90 * layers.veins))
    picture = np.maximum(picture, 0.98 * layers.edema)
    picture = np.maximum(picture, 0.85 * layers.exudate)  # leaking capillaries
    return picture * (1.0 - 0.92 * layers.hemorrhage)


def _autofluorescence(layers: _Layers) -> Picture:
    """Lipofuscin of the pigment epithelium: none in the disc and in atrophy; vessels cover it."""
    picture = (0.52 + 0.04 * layers.tissue) * (1.0 - 0.55 * layers.macula)
    picture = picture + 0.38 * layers.drusen + 0.30 * layers.edema
    # cells around atrophy are overloaded with lipofuscin
    dying = np.clip(2.5 * gaussian_filter(layers.atrophy, 2.0), 0, 1)
    picture = picture + 0.40 * dying
    picture = picture * (1.0 - 0.92 * np.maximum(layers.disc, layers.atrophy))
    covered = np.maximum(0.65 * np.maximum(layers.arteries, layers.veins), 0.92 * layers.hemorrhage)
    return picture * (1.0 - np.maximum(covered, 0.85 * layers.exudate))


FUNDUS_MODES = by_name(_color, _redfree, _angiography, _autofluorescence)


def _over(
    paint: Float[np.ndarray, "size size 3"], colour: Float[np.ndarray, "3"], share: Picture
) -> Float[np.ndarray, "size size 3"]:
    return paint + share[..., None] * (colour - paint)
