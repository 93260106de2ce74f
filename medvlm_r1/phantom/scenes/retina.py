"""A retina with vessels and lesions, for fundus photographs (from the front) and OCT (cross-sections).

Axes are those of a fundus image: x to its right, y down, the fovea near the centre. The field is 45 degrees
or about 13 mm wide: one unit is 0.12 mm. The nasal side is that of the optic disc.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medvlm_r1.phantom.scenes.geometry import draw_apart
from medvlm_r1.phantom.scenes.outline import Outline, Spot, draw_outline
from medvlm_r1.phantom.spec import SceneSpec

SITES = ("fovea", "disc", "arcade", "periphery")
DISEASES = ("drusen", "exudate", "hemorrhage", "edema", "atrophy")
# Lesion radius in units, +-4 %.
RADII = {"minimal": 4.0, "mild": 6.5, "moderate": 10.0, "severe": 15.0}

_DISC = 31.0  # distance of fovea and disc, units (15 degrees: Hogan et al., Histology of the Human Eye)
_ARCADE = 25.0  # distance of fovea and vascular arcades, units


@dataclass(frozen=True)
class Vessel:
    """A vessel from its origin to its end, an artery or a vein."""

    points: Float[np.ndarray, "n 2"]  # polyline, units
    width: float  # units
    artery: bool
    parent: int | None  # index of the vessel that it branches from; None if it starts at the disc


@dataclass(frozen=True)
class Retina:
    """A retina."""

    fovea: Spot
    disc: Spot
    disc_radius: float  # units
    cup: float  # radius of the cup as a fraction of disc_radius
    vessels: tuple[Vessel, ...]  # parents before their branches
    disease: str
    lesions: tuple[Outline, ...]  # one to four, not overlapping along x
    sites: tuple[str, ...]  # of each lesion
    key: tuple[int, ...]  # seeds details without a label


def draw_retina(spec: SceneSpec) -> Retina:
    """Draw the scene of ``spec``, deterministic."""
    rng = np.random.default_rng(spec.key)
    side = 1.0 if rng.uniform() < 0.5 else -1.0  # which eye
    fovea = (-8.0 * side + float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2)))
    disc = (fovea[0] + side * _DISC * float(rng.uniform(0.95, 1.05)), fovea[1] - float(rng.uniform(1, 4)))
    vessels = _draw_vessels(fovea, disc, side, rng)

    def draw(places: list) -> tuple[str, Spot]:
        site = SITES[int(rng.integers(len(SITES)))] if places else spec.site
        return site, _place(site, fovea, disc, side, rng)

    def fits(place: tuple[str, Spot], others: list, apart: float) -> bool:
        return all(abs(place[1][0] - other[0]) >= apart for _, other in others)

    places = draw_apart(spec.count, 2.0 * RADII[spec.grade] + 3.0, draw, fits)
    return Retina(
        fovea=fovea,
        disc=disc,
        disc_radius=float(rng.uniform(7.0, 8.2)),
        cup=float(rng.uniform(0.35, 0.6)),
        vessels=vessels,
        disease=spec.disease,
        lesions=tuple(
            draw_outline(place, RADII[spec.grade] * float(rng.uniform(0.96, 1.04)), 0.08, rng)
            for _, place in places
        ),
        sites=tuple(site for site, _ in places),
        key=(*spec.key, 1),
    )


# Lesions -----------------------------------------------------------------------------------------------


def _place(site: str, fovea: Spot, disc: Spot, side: float, rng: np.random.Generator) -> Spot:
    """Draw a point of this site."""
    turn, far = float(rng.uniform(0, 2 * math.pi)), math.sqrt(float(rng.uniform(0, 1)))
    if site == "fovea":
        return fovea[0] + 2.0 * far * math.cos(turn), fovea[1] + 2.0 * far * math.sin(turn)
    if site == "disc":  # at its margin: pale lesions are invisible inside the pale disc
        return disc[0] + 7.0 * math.cos(turn), disc[1] + 7.0 * math.sin(turn)
    up = 1.0 if turn < math.pi else -1.0
    if site == "arcade":
        return _on_arcade(fovea, disc, 0.30 * math.pi + 0.35 * math.pi * far, up)
    # beyond the arcades, above and below, on the temporal side
    turn = float(rng.uniform(0.60, 0.90)) * math.pi * up
    return 46.0 * side * math.cos(turn), 46.0 * math.sin(turn)


def _on_arcade(fovea: Spot, disc: Spot, turn: float, up: float) -> Spot:
    """Point of a temporal arcade at ``turn`` radians: 0 at the disc, pi beyond the fovea."""
    x = fovea[0] + (disc[0] - fovea[0]) * math.cos(turn)
    return x, disc[1] + (fovea[1] - disc[1]) * turn / math.pi + up * _ARCADE * math.sin(turn)


# Vessels -----------------------------------------------------------------------------------------------


def _draw_vessels(fovea: Spot, disc: Spot, side: float, rng: np.random.Generator) -> tuple[Vessel, ...]:
    """Draw four arteries and four veins from the disc, with two generations of branches."""
    vessels: list[Vessel] = []
    for artery in (False, True):
        width = 1.25 if artery else 1.7  # veins are a third wider (Hubbard et al. 1999)
        drift = 1.6 if artery else -0.9
        for up in (-1.0, 1.0):
            turns = np.linspace(0.02, 0.78, 22) * math.pi
            path = np.array([_on_arcade(fovea, disc, turn, up) for turn in turns])
            path += _wander(len(path), 0.5, rng) + np.array([0.0, up * drift])
            path[0] = disc
            _branch(vessels, path, width, artery, None, fovea, rng, 2)
            heading = math.atan2(up, side * rng.uniform(0.9, 1.5))
            path = _walk(np.asarray(disc), heading + 0.12 * drift * up, -0.03 * up * side, 40.0, rng)
            _branch(vessels, path, 0.75 * width, artery, None, fovea, rng, 1)
    return tuple(vessels)


def _branch(
    vessels: list[Vessel],
    path: Float[np.ndarray, "n 2"],
    width: float,
    artery: bool,
    parent: int | None,
    fovea: Spot,
    rng: np.random.Generator,
    depth: int,
) -> None:
    """Add a vessel and ``depth`` generations of branches on alternating sides.

    A branch has 2^(-1/3) of its parent's width: two of them carry its flow (Murray 1926).
    """
    index = len(vessels)
    vessels.append(Vessel(path, width, artery, parent))
    if not depth:
        return
    for turn, at in enumerate(range(4 + int(rng.integers(3)), len(path) - 2, 5)):
        way = path[at] - path[at - 1]
        heading = math.atan2(way[1], way[0]) + (1 if turn % 2 else -1) * rng.uniform(0.6, 1.0)
        branch = _walk(path[at], heading, rng.normal(0, 0.03), rng.uniform(10, 24), rng)
        near = np.hypot(*(branch - fovea).T) < 6.5  # no vessel crosses the fovea
        if near.any():
            branch = branch[: int(near.argmax())]
        if len(branch) > 2:
            _branch(vessels, branch, 2 ** (-1 / 3) * 0.8 * width, artery, index, fovea, rng, depth - 1)


def _walk(
    start: Float[np.ndarray, "2"], heading: float, bend: float, length: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 2"]:
    """Random walk of steps of 2 units; the heading changes by ``bend`` plus noise."""
    number = max(3, round(length / 2))
    headings = heading + np.cumsum(bend + rng.normal(0, 0.10, number))
    steps = 2.0 * np.stack([np.cos(headings), np.sin(headings)], -1)
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])


def _wander(number: int, scale: float, rng: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    smooth = np.cumsum(rng.normal(0, 0.35, (number, 2)), 0)
    return scale * (smooth - np.linspace(0, 1, number)[:, None] * smooth[-1])
