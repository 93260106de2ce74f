"""Optical coherence tomography: a cross-section of the retina from vitreous (top) to sclera (bottom).

Each layer reflects a share of the light that reaches it, and light is attenuated both ways:
``I(z) = R(z) exp(-2 integral of mu)``. The order of reflectivities is that of the retina's bands (Staurenghi
et al., Ophthalmology 2014, IN.OCT nomenclature), thicknesses are those of the normal macula (about 0.3 mm);
depth is stretched about fivefold, as on the display of an instrument.

The section is a curve in the fundus through the centres of all lesions.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from medvlm_r1.phantom.physics.paint import Picture, axes, blobs, cloud, soft
from medvlm_r1.phantom.scenes.retina import Retina
from medvlm_r1.phantom.spec import by_name

# Layers from the vitreous down: reflectivity, and attenuation per unit.
LAYERS: dict[str, tuple[float, float]] = {
    "vitreous": (0.006, 0.0),
    "nerve fibre": (0.62, 0.012),
    "ganglion": (0.26, 0.008),
    "inner nuclear": (0.085, 0.004),
    "outer plexiform": (0.24, 0.006),
    "outer nuclear": (0.045, 0.003),
    "ellipsoid": (0.80, 0.012),
    "segments": (0.16, 0.010),
    "pigment": (1.00, 0.150),
    "choroid": (0.42, 0.028),
    "sclera": (0.26, 0.050),
}

Column = Float[np.ndarray, "size"]


@dataclass
class _Cut:
    """The section by columns; lengths in units."""

    x: Column
    to_fovea: Column
    to_disc: Column
    to_vessel: Column
    depth: Column  # lower border of the pigment epithelium
    thick: dict[str, Column]
    inside: list[Column]  # per lesion: 1 at its centre, 0 at its edge, negative outside


def oct_section(scene: Retina, acquisition: str, rng: np.random.Generator, size: int) -> Picture:
    """Render a section through all lesions, in grey."""
    own = np.random.default_rng(scene.key)
    cut = _cut(scene, own, size)
    _LESIONS[scene.disease](cut)
    tops = boundaries(cut.thick, cut.depth)
    _, z = axes(size)
    reflectivity, loss = np.zeros((2, size, size), np.float32)
    for name, top, bottom in zip(LAYERS, tops, [*tops[1:], np.full(size, 200.0)], strict=True):
        share = soft(z - top, 1.0) * soft(bottom - z, 1.0)
        lumen = 1.0
        if name == "choroid":  # large vessels are dark
            lumen = 1.0 - 0.75 * soft(cloud(own, 4.0, size) - 0.35, 0.5)
        reflectivity += LAYERS[name][0] * share * lumen
        loss += LAYERS[name][1] * share
    level = dict(zip(LAYERS, tops, strict=True))
    vessel = blobs(*_lumens(cut, level), size)
    flow = _flow(level, own, size) + 1.3 * vessel
    reflectivity += 0.35 * vessel
    loss += 0.28 * vessel
    _add_lesions(scene, cut, level, own, reflectivity, loss)
    return OCT_DEVICES[acquisition](reflectivity, loss, flow, rng)


def boundaries(thick: dict[str, Column], depth: Column) -> list[Column]:
    """Return the upper border of every layer in the order of ``LAYERS``, stacking layers from below."""
    inner = [name for name in LAYERS if name not in ("vitreous", "choroid", "sclera")]
    tops, level = [], depth
    for name in reversed(inner):
        level = level - thick[name]
        tops.append(level)
    above = np.full_like(depth, -200.0)
    return [above, *reversed(tops), depth, depth + thick["choroid"]]


def _cut(scene: Retina, rng: np.random.Generator, size: int) -> _Cut:
    """Return the healthy retina along the section."""
    x = axes(size)[0][0]
    order = sorted(lesion.centre for lesion in scene.lesions)
    y = np.interp(x, [c[0] for c in order], [c[1] for c in order])
    to_fovea = np.hypot(x - scene.fovea[0], y - scene.fovea[1])
    to_disc = np.hypot(x - scene.disc[0], y - scene.disc[1])
    large = np.concatenate([v.points for v in scene.vessels if v.width > 0.8])
    to_vessel = np.hypot(x[:, None] - large[:, 0], y[:, None] - large[:, 1]).min(1)
    pit = np.exp(-((to_fovea / 6.5) ** 2))
    rim = np.maximum(to_disc - scene.disc_radius, 0.0)
    far = 1.0 - 0.45 * np.clip((to_fovea - 30.0) / 14.0, 0, 1) * np.clip(rim / 12.0, 0, 1)
    bundle = np.exp(-((to_vessel / 5.0) ** 2))
    ends = soft(to_disc - scene.disc_radius, 2.0)  # all layers but nerve fibres end at the disc
    thick = {
        "nerve fibre": (1.0 + 4.5 * np.exp(-rim / 8.0) + 2.6 * gaussian_filter1d(bundle, 3))
        * (1 - 0.95 * pit),
        "ganglion": 8.0 * far * (1 - 0.95 * pit) * ends,
        "inner nuclear": 4.5 * far * (1 - 0.95 * pit) * ends,
        "outer plexiform": 2.4 * (1 - 0.6 * pit) * ends,
        "outer nuclear": (7.0 * far + 3.0 * pit) * ends,
        "ellipsoid": 1.7 * ends,
        "segments": 2.0 * ends,
        "pigment": 2.5 * ends,
        "choroid": 13.0 + 1.5 * np.cos(x / 19.0 + rng.uniform(0, 6)) + 2.0 * pit,
    }
    cup = soft(1.15 * scene.cup * scene.disc_radius - to_disc, 3.0)
    swing = rng.uniform(-0.06, 0.06) * x + rng.uniform(0.001, 0.0022) * x**2
    depth = 16.0 + rng.uniform(-2, 2) - swing + 13.0 * cup - 7.0 * (1 - ends)
    inside = [
        1.0 - np.hypot(x - lesion.centre[0], y - lesion.centre[1]) / lesion.radius for lesion in scene.lesions
    ]
    return _Cut(x, to_fovea, to_disc, to_vessel, depth, thick, inside)


# Lesions that move layers ------------------------------------------------------------------------------


def _drusen(cut: _Cut) -> None:
    """Deposits raise the pigment epithelium in bumps."""
    for inside in cut.inside:
        away = np.clip(1.0 - inside, 0, 1)
        bumps = np.abs(np.cos(1.5 * math.pi * away)) * (inside > 0)
        lift = (3.0 + 3.0 * np.clip(inside, 0, 1)) * bumps
        cut.depth = cut.depth - gaussian_filter1d(lift, 0.8)
        cut.thick["choroid"] = cut.thick["choroid"] + gaussian_filter1d(lift, 0.8)
        cut.thick["outer nuclear"] = np.maximum(cut.thick["outer nuclear"] - 0.7 * lift, 0.8)


def _edema(cut: _Cut) -> None:
    """The nuclear layers swell with fluid."""
    for inside in cut.inside:
        swell = np.sqrt(np.clip(inside, 0, 1))
        cut.thick["outer nuclear"] = cut.thick["outer nuclear"] + 7.0 * swell
        cut.thick["inner nuclear"] = cut.thick["inner nuclear"] + 4.0 * swell


def _hemorrhage(cut: _Cut) -> None:
    """Blood between the nerve fibres raises the surface."""
    for inside in cut.inside:
        cut.thick["nerve fibre"] = cut.thick["nerve fibre"] + 4.5 * np.sqrt(np.clip(inside, 0, 1))


def _atrophy(cut: _Cut) -> None:
    """Pigment epithelium and photoreceptors are missing; the layers above sink."""
    for inside in cut.inside:
        bare = soft(inside, 0.08)
        for name, left in (("pigment", 0.05), ("ellipsoid", 0.0), ("segments", 0.0), ("outer nuclear", 0.15)):
            cut.thick[name] = cut.thick[name] * (1.0 - (1.0 - left) * bare)


def _exudate(cut: _Cut) -> None:
    """Deposits displace no layer."""


_LESIONS = by_name(_drusen, _exudate, _hemorrhage, _edema, _atrophy)


# Details inside layers ---------------------------------------------------------------------------------


def _add_lesions(
    scene: Retina,
    cut: _Cut,
    level: dict[str, Column],
    rng: np.random.Generator,
    reflectivity: Picture,
    loss: Picture,
) -> None:
    """Add deposits, blood and fluid of the lesions within the layers."""
    size = len(cut.x)
    _, z = axes(size)
    for inside in cut.inside:
        columns = np.flatnonzero(inside > 0)
        if not len(columns):
            continue
        if scene.disease == "exudate":
            number = max(5, len(columns) // 2)
            at = columns[np.linspace(0, len(columns) - 1, number).astype(int)]
            deep = level["outer plexiform"][at] + rng.uniform(-1.5, 2.5, number)
            dots = blobs(np.stack([cut.x[at], deep], -1), rng.uniform(0.9, 1.5, number), size)
            reflectivity += 1.6 * dots
            loss += 0.30 * dots
        elif scene.disease == "hemorrhage":
            pool = soft(z - level["nerve fibre"], 1.0) * soft(level["ganglion"] - z, 1.0) * soft(inside, 0.1)
            reflectivity += 0.7 * pool
            loss += 0.16 * pool
        elif scene.disease == "edema":
            for name, count in (("outer nuclear", 3), ("inner nuclear", 2)):
                below = "ellipsoid" if name == "outer nuclear" else "outer plexiform"
                at = columns[np.linspace(0, len(columns) - 1, 2 * count + 1).astype(int)[1::2]]
                tall = level[below][at] - level[name][at]
                middle = level[name][at] + 0.5 * tall
                radii = np.minimum(0.42 * tall, 0.45 * len(columns) * 112 / size / count)
                fluid = blobs(np.stack([cut.x[at], middle], -1), np.maximum(radii, 0.8), size)
                reflectivity *= 1.0 - 0.97 * fluid
        elif scene.disease == "drusen":
            filled = soft(z - cut.depth, 1.0) * soft(16.0 - z, 1.0) * (inside > 0)
            reflectivity += 0.10 * filled


def _lumens(cut: _Cut, level: dict[str, Column]) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Centres and radii of large vessels where the section crosses them."""
    near = cut.to_vessel
    at = np.flatnonzero((near < 1.6) & (near <= np.roll(near, 1)) & (near < np.roll(near, -1)))
    deep = 0.5 * (level["nerve fibre"][at] + level["ganglion"][at]) + 0.6
    return np.stack([cut.x[at], deep], -1), np.full(len(at), 1.7)


def _flow(level: dict[str, Column], rng: np.random.Generator, size: int) -> Picture:
    """Blood flow in the plexuses on both sides of the inner nuclear layer, and in the choroid."""
    _, z = axes(size)
    grain = soft(cloud(rng, 1.6, size) - 0.5, 0.6)
    present = soft(level["outer plexiform"] - level["ganglion"] - 2.0, 2.0)
    flow = np.zeros((size, size), np.float32)
    for name in ("inner nuclear", "outer plexiform"):
        flow += 0.55 * present * grain * np.exp(-(((z - level[name]) / 1.6) ** 2))
    flow += 0.60 * grain * soft(z - level["ganglion"], 1.0) * soft(level["inner nuclear"] - z, 1.0) * 0.5
    return flow + soft(z - level["choroid"], 1.0) * soft(level["sclera"] - z, 2.0) * (0.25 + 0.75 * grain)


# Devices -----------------------------------------------------------------------------------------------


def backscattered(
    reflectivity: Float[np.ndarray, "z x"], loss: Float[np.ndarray, "z x"]
) -> Float[np.ndarray, "z x"]:
    """Light returned from each depth, attenuated both ways by the tissue above."""
    step = 112.0 / len(loss)
    return reflectivity * np.exp(-2.0 * step * np.cumsum(loss, axis=0))


def _timedomain(reflectivity: Picture, loss: Picture, flow: Picture, rng: np.random.Generator) -> Picture:
    """Time domain: few scan lines, axial blur."""
    size = len(reflectivity)
    light = gaussian_filter1d(backscattered(reflectivity, loss), 1.2, axis=0)
    coarse = np.minimum(np.arange(size) // 3 * 3 + 1, size - 1)
    return _displayed(_speckled(light, 6.0, rng, 0.9)[:, coarse], 0.010, rng)


def _spectral(reflectivity: Picture, loss: Picture, flow: Picture, rng: np.random.Generator) -> Picture:
    """Spectral domain: sharp; sensitivity falls with depth."""
    _, z = axes(len(reflectivity))
    light = backscattered(reflectivity, loss) * np.exp(-np.clip(z + 20, 0, None) / 38.0)
    return _displayed(1.5 * _speckled(light, 5.0, rng, 0.45), 0.006, rng)


def _enhanced(reflectivity: Picture, loss: Picture, flow: Picture, rng: np.random.Generator) -> Picture:
    """Enhanced depth imaging: the choroid is as bright as the retina, down to the sclera."""
    _, z = axes(len(reflectivity))
    light = backscattered(reflectivity, 0.6 * loss) * np.exp(np.clip(z + 12, -40, 40) / 30.0)
    return _displayed(0.6 * _speckled(light, 5.0, rng, 0.6), 0.006, rng)


def _angiography(reflectivity: Picture, loss: Picture, flow: Picture, rng: np.random.Generator) -> Picture:
    """Angiography: changes between repeated scans, i.e. moving blood, over a faint section."""
    light = backscattered(0.10 * reflectivity + 0.9 * flow, loss)
    return _displayed(_speckled(light, 6.0, rng, 0.4), 0.004, rng)


OCT_DEVICES = by_name(_timedomain, _spectral, _enhanced, _angiography)


def _speckled(light: Picture, looks: float, rng: np.random.Generator, blur: float) -> Picture:
    """Apply gamma speckle of ``looks`` looks (Goodman 1976), blurred to the width of the beam."""
    return gaussian_filter(light * (rng.gamma(looks, 1.0 / looks, light.shape)), (0.35, blur))


def _displayed(light: Picture, floor: float, rng: np.random.Generator) -> Picture:
    """Add noise and map to a logarithmic scale of about 34 dB."""
    noise = floor * rng.exponential(1.0, light.shape)
    return 1.0 + np.log10(np.maximum(light + noise, 1e-6)) / 2.1
