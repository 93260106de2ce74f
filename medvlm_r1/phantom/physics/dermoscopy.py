"""Dermoscopy: Beer-Lambert absorption by melanin and haemoglobin in red, green and blue.

Reflectance is ``base exp(-melanin m - blood h - deep d)`` with one coefficient per colour. Absorption by
melanin follows wavelength^-3.3 (Jacques, Physics in Medicine and Biology 2013), by haemoglobin it peaks in
green (Prahl's tables); pigment deep in the dermis looks blue because the tissue above scatters blue light
back (Tyndall).
"""

import math

import numpy as np
from jaxtyping import Float

from medvlm_r1.phantom.physics.paint import Picture, axes, blobs, cloud, jittered_lattice, soft, strokes
from medvlm_r1.phantom.scenes.skin import Skin
from medvlm_r1.phantom.spec import by_name

# Red, green and blue at 620, 540 and 460 nm.
_BASE = np.array([0.97, 0.84, 0.76], np.float32)
_MELANIN = np.array([0.63, 1.00, 1.71], np.float32)
_BLOOD = np.array([0.06, 1.00, 0.62], np.float32)
_DEEP = np.array([1.00, 0.72, 0.38], np.float32)
_TONE = {"fair": 0.06, "olive": 0.25, "brown": 0.60, "dark": 1.15}

# Polarised light shows deep structures, immersion the surface under a fluid; without a dermoscope (clinical)
# the surface reflects; ultraviolet light near 365 nm shows melanin alone.
DERMOSCOPY_MODES = ("polarized", "immersion", "clinical", "ultraviolet")


class _Layers:
    """Absorbers per pixel, and the layers painted over them."""

    def __init__(self, skin: Skin, size: int):
        self.size, self.rng = size, np.random.default_rng(skin.key)
        self.x, self.y = axes(size)
        self.inside = skin.lesion.inside(self.x, self.y)
        self.melanin = np.full((size, size), _TONE[skin.tone], np.float32)
        self.blood = np.full((size, size), 0.10, np.float32)
        self.deep = np.zeros((size, size), np.float32)
        self.white = np.zeros((size, size), np.float32)
        self.hair = np.zeros((size, size), np.float32)

    def disc(self, number: int, low: float, high: float, skin: Skin, reach: float = 0.8) -> tuple:
        """Draw centres and radii of ``number`` discs inside the lesion."""
        turn = self.rng.uniform(0, 2 * math.pi, number)
        far = reach * skin.lesion.radius * np.sqrt(self.rng.uniform(0, 1, number))
        centres = np.stack([far * np.cos(turn), far * np.sin(turn)], -1) + skin.lesion.centre
        return centres, self.rng.uniform(low, high, number)


def dermoscopy(
    scene: Skin, acquisition: str, rng: np.random.Generator, size: int
) -> Float[np.ndarray, "size size 3"]:
    """Render skin through a dermoscope, in colour."""
    layers = _Layers(scene, size)
    _LESIONS[scene.disease](layers, scene)
    _SITES[scene.site](layers)
    layers.melanin *= 1.0 + 0.06 * cloud(layers.rng, 14.0, size)
    layers.blood *= 1.0 + 0.15 * cloud(layers.rng, 9.0, size)
    return _lit(layers, acquisition, rng, size)


def _lit(
    layers: _Layers, acquisition: str, rng: np.random.Generator, size: int
) -> Float[np.ndarray, "size size 3"]:
    """Render the layers under the light of an acquisition, with noise and vignette."""
    x, y = layers.x, layers.y
    if acquisition == "ultraviolet":
        grey = np.exp(-1.1 * layers.melanin - 0.4 * layers.deep - 0.22 * layers.blood) + 0.3 * layers.white
        picture = grey[..., None] * np.array([0.50, 0.42, 0.95], np.float32)
    else:
        absorbers = ((layers.melanin, _MELANIN), (layers.blood, _BLOOD), (layers.deep, _DEEP))
        picture = _BASE * np.exp(-sum(part[..., None] * colour for part, colour in absorbers))
        veil = {"polarized": 0.25, "immersion": 0.8, "clinical": 0.5}[acquisition]
        picture += (veil * layers.white)[..., None] * (1.0 - picture)
    picture *= 1.0 - 0.85 * layers.hair[..., None]
    if acquisition == "immersion":  # a bluish haze, and bubbles in the fluid
        picture = 0.86 * picture + 0.14 * np.array([0.82, 0.88, 0.98], np.float32)
        number = int(rng.integers(3, 6))
        centres, radii = rng.uniform(-46, 46, (number, 2)), rng.uniform(2.0, 4.5, number)
        rim = blobs(centres, radii, size) - blobs(centres, radii - 1.0, size)
        picture += 0.30 * np.maximum(rim, 0)[..., None]
    if acquisition == "clinical":  # skin lines and glare
        turn = rng.uniform(0, math.pi, 2)
        lines = sum(np.cos(1.15 * (math.cos(t) * x + math.sin(t) * y) + rng.uniform(0, 6)) for t in turn)
        picture *= (1.0 + 0.04 * lines)[..., None]
        glare = soft(cloud(rng, 4.0, size) + 0.5 * lines - 2.1, 0.8)
        picture += 0.6 * glare[..., None] * (1.0 - picture)
    else:
        far = np.hypot(x, y)
        picture *= (1.0 - 0.30 * (far / 56.0) ** 4 * (far < 80))[..., None]
        picture *= (0.06 + 0.94 * soft(57.5 - far, 2.5))[..., None]
    return picture + 0.012 * rng.standard_normal((size, size, 1), dtype=np.float32)


# Sites -------------------------------------------------------------------------------------------------


def _face(layers: _Layers) -> None:
    """Pale round follicle openings in rows; more blood."""
    layers.blood += 0.13
    centres = jittered_lattice(layers.rng, 11.0, 0.16)
    holes = blobs(centres, layers.rng.uniform(1.7, 2.4, len(centres)), layers.size)
    layers.melanin *= 1.0 - 0.75 * holes
    layers.deep *= 1.0 - 0.6 * holes
    layers.white = np.maximum(layers.white, 0.35 * holes)


def _scalp(layers: _Layers) -> None:
    """Many thick hairs in one direction."""
    layers.hair = np.maximum(layers.hair, _hairs(layers, 17, 1.1))


def _trunk(layers: _Layers) -> None:
    """A faint network and one to three hairs."""
    layers.melanin *= 1.0 + 0.22 * _network(layers, 4.6)
    layers.hair = np.maximum(layers.hair, _hairs(layers, int(layers.rng.integers(1, 4)), 0.55))


def _sole(layers: _Layers) -> None:
    """Parallel ridges with openings of sweat glands."""
    turn = layers.rng.uniform(-0.5, 0.5)
    along = math.cos(turn) * layers.x + math.sin(turn) * layers.y
    across = math.cos(turn) * layers.y - math.sin(turn) * layers.x
    across = across + 2.5 * np.sin(along / 17.0 + layers.rng.uniform(0, 6))
    ridge = np.cos(2 * math.pi * across / 8.0)
    layers.melanin *= 1.0 - 0.38 * ridge
    layers.blood *= 1.0 + 0.30 * ridge
    pores = soft(ridge - 0.93, 0.1) * soft(np.cos(2 * math.pi * along / 6.5) - 0.75, 0.3)
    layers.white = np.maximum(layers.white, 0.8 * pores)


def _lip(layers: _Layers) -> None:
    """Red mucosa with vertical furrows."""
    layers.melanin *= 0.80
    layers.blood += 0.75
    waves = layers.x + 1.5 * cloud(layers.rng, 12.0, layers.size)
    furrow = soft(np.cos(2 * math.pi * waves / 15.0) - 0.80, 0.25)
    layers.blood += 0.75 * furrow
    layers.melanin += 0.18 * furrow


_SITES = by_name(_face, _scalp, _trunk, _sole, _lip)


def _network(layers: _Layers, spacing: float) -> Picture:
    """Honeycomb pattern: 1 on its lines, about -0.5 in its holes."""
    bend = 1.2 * cloud(layers.rng, 10.0, layers.size)
    turns = layers.rng.uniform(0, math.pi) + np.arange(3) * 2 * math.pi / 3
    x, y, frequency = layers.x + bend, layers.y - bend, 4.6 / spacing * math.pi * 0.5
    wave = sum(np.cos(frequency * (math.cos(t) * x + math.sin(t) * y)) for t in turns)
    return np.clip(-wave / 1.5, -0.5, 1.0)


def _hairs(layers: _Layers, number: int, width: float) -> Picture:
    rng, lines = layers.rng, []
    course = rng.uniform(0, math.pi)
    steps = np.linspace(-1, 1, 12)
    for _ in range(number):
        turn, offset, bend = course + rng.normal(0, 0.28), rng.uniform(-60, 60), rng.normal(0, 9)
        along, across = 80.0 * steps, offset + bend * steps**2
        cos, sin = math.cos(turn), math.sin(turn)
        points = np.stack([cos * along - sin * across, sin * along + cos * across], -1)
        lines.append((points, width * rng.uniform(0.8, 1.3)))
    return strokes(lines, layers.size)


# Lesions -----------------------------------------------------------------------------------------------


def _nevus(layers: _Layers, skin: Skin) -> None:
    """A regular network that fades towards the border."""
    share = soft(layers.inside, 0.30 * skin.lesion.radius)
    layers.melanin += share * (0.95 + 0.75 * _network(layers, 4.2))


def _melanoma(layers: _Layers, skin: Skin) -> None:
    """Black, brown, blue, red and white patches, a notched border, and streaks across it."""
    share = soft(layers.inside, 1.5)
    scale = 0.35 * skin.lesion.radius + 2.0
    patches = [cloud(layers.rng, scale, layers.size) for _ in range(3)]
    layers.melanin += share * (1.1 + 1.5 * soft(patches[0] - 0.1, 0.7))
    layers.deep += share * 1.3 * soft(patches[1] - 0.6, 0.6)
    layers.blood += share * 0.7 * soft(patches[2] - 0.7, 0.5)
    pale = share * soft(-patches[1] - 0.9, 0.4)
    layers.melanin *= 1.0 - 0.75 * pale
    layers.white += 0.5 * pale
    radius, lines = skin.lesion.radius, []
    for turn in layers.rng.uniform(0, 2 * math.pi, 14):
        way = _direction(turn)
        start = np.asarray(skin.lesion.centre) + 0.80 * radius * way
        lines.append((np.stack([start, start + layers.rng.uniform(0.25, 0.42) * radius * way]), 1.3))
    layers.melanin += 1.3 * strokes(lines, layers.size)


def _keratosis(layers: _Layers, skin: Skin) -> None:
    """Waxy brown with a sharp border, white cysts and dark plugs."""
    share = soft(layers.inside, 0.8)
    layers.melanin += share * (0.55 + 0.18 * np.sign(cloud(layers.rng, 3.0, layers.size)))
    layers.white += 0.18 * share
    number = round(4 + 0.45 * skin.lesion.radius)
    layers.white = np.maximum(layers.white, 0.95 * blobs(*layers.disc(number, 1.1, 1.8, skin), layers.size))
    plugs = blobs(*layers.disc(number, 1.2, 2.1, skin), layers.size)
    layers.melanin += 1.5 * plugs
    layers.white *= 1.0 - plugs


def _hemangioma(layers: _Layers, skin: Skin) -> None:
    """Round, sharp red lakes."""
    share = soft(layers.inside, 2.0)
    layers.melanin *= 1.0 - 0.35 * share
    layers.blood += 0.5 * share
    spots = jittered_lattice(layers.rng, 0.36 * skin.lesion.radius + 2.0, 0.18)
    far = np.hypot(*(spots - skin.lesion.centre).T)
    spots = spots[far < 0.9 * skin.lesion.radius]
    radii = (0.17 * skin.lesion.radius + 0.9) * layers.rng.uniform(0.8, 1.15, len(spots))
    lakes = blobs(spots, radii, layers.size)
    layers.blood += 2.4 * lakes
    layers.deep += 0.5 * lakes


def _carcinoma(layers: _Layers, skin: Skin) -> None:
    """Basal cell carcinoma: pale pink with branching vessels and blue-grey nests."""
    lines: list = []

    def grow(start: Float[np.ndarray, "2"], turn: float, length: float, width: float, depth: int) -> None:
        """Add a vessel and its branches."""
        end = start + length * _direction(turn)
        bow = 0.12 * length * layers.rng.normal() * np.array([-math.sin(turn), math.cos(turn)])
        lines.append((np.stack([start, 0.5 * (start + end) + bow, end]), width))
        if depth > 1:
            for side in (-1, 1):
                way = turn + side * layers.rng.uniform(0.3, 0.9)
                grow(end, way, 0.7 * length, 0.72 * width, depth - 1)

    share = soft(layers.inside, 2.5)
    layers.melanin *= 1.0 - 0.6 * share
    layers.blood += 0.22 * share
    layers.white += 0.22 * share
    layers.deep += 1.5 * blobs(
        *layers.disc(5, 0.10 * skin.lesion.radius + 0.8, 0.16 * skin.lesion.radius + 1.2, skin, 0.85),
        layers.size,
        stretch=1.4,
        angles=layers.rng.uniform(0, 3, 5),
    )
    for turn in layers.rng.uniform(0, 2 * math.pi, 3):
        start = np.asarray(skin.lesion.centre) + skin.lesion.radius * _direction(turn)
        grow(start, turn + math.pi, 0.55 * skin.lesion.radius, 1.5, 3)
    layers.blood += 2.0 * strokes(lines, layers.size) * soft(layers.inside + 2.0, 2.0)


def _direction(turn: float) -> Float[np.ndarray, "2"]:
    return np.array([math.cos(turn), math.sin(turn)])


_LESIONS = by_name(_nevus, _melanoma, _keratosis, _hemangioma, _carcinoma)
