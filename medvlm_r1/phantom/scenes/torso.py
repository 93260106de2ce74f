"""A torso: an anatomy of ellipsoids with lesions, drawn from a seed, without physics.

Simplifications that keep every question answerable by eye at 112 pixels:

1. Slices are curved coronal reformats through the centres of all organs and lesions.
2. A lesion faces the viewer (as a radiographer turns the patient), so that a crescent is a crescent in every
   view; its thickness is constant, so that small and large lesions attenuate alike.
3. Lesions of one scene do not overlap in any of the four views.
"""

import math
from dataclasses import dataclass

import numpy as np

from medvlm_r1.phantom.scenes.geometry import VIEWS, Ellipsoid, Point, draw_apart, to_view
from medvlm_r1.phantom.spec import SceneSpec, by_name

DISEASES = ("cyst", "tumor", "abscess", "hematoma", "calcification")
# Lesion radius in units, +-4 %; factors of about 1.5 leave gaps between the grades.
RADII = {"minimal": 3.7, "mild": 6.2, "moderate": 9.5, "severe": 14.0}
DEPTH = 4.0  # half thickness of a lesion along the line of sight, units

# Chest, belly, shoulders, neck: centre and radii.
_BODY: tuple[tuple[tuple, tuple], ...] = (
    ((0, -10, 0), (43, 45, 25)),
    ((0, 32, 0), (42, 62, 24)),
    ((0, -34, -2), (46, 17, 17)),
    ((0, -50, -3), (11, 24, 12)),
)
# Organ, centre, radii and angle of every part in painting order: later parts cover earlier ones.
_TORSO: tuple[tuple[str, tuple, tuple, float], ...] = (
    ("lung", (-19.5, -21, -2), (13.0, 23.0, 15.0), 0.06),
    ("lung", (20.5, -21, -2), (12.0, 22.0, 15.0), -0.06),
    ("liver", (-15, 9, 7), (20.0, 12.5, 14.0), -0.14),
    ("bowel", (9, 7, 5), (9.0, 8.0, 8.0), 0.4),
    ("heart", (5, -9, 9), (11.5, 12.5, 10.0), -0.5),
    ("spleen", (26, 8, -9), (8.5, 11.5, 10.0), 0.2),
    ("kidney", (-18, 26, -12), (6.5, 10.5, 7.0), 0.2),
    ("kidney", (18, 25, -12), (6.5, 10.5, 7.0), -0.2),
    ("bone", (-29, 41, -6), (3.6, 11.5, 9.0), -0.5),
    ("bone", (29, 41, -6), (3.6, 11.5, 9.0), 0.5),
    ("bone", (-29, 55, 0), (6.0, 6.0, 6.0), 0.0),
    ("bone", (29, 55, 0), (6.0, 6.0, 6.0), 0.0),
    ("bladder", (0, 44, 0), (12.0, 9.0, 9.0), 0.0),
)
_BOWELS = 5  # loops of bowel, in addition to the fixed one
ORGANS = ("lung", "heart", "liver", "spleen", "kidney", "bladder")


@dataclass(frozen=True)
class Part:
    """An ellipsoid of one tissue."""

    tissue: str
    solid: Ellipsoid


@dataclass(frozen=True)
class Piece:
    """A part of a lesion in image axes relative to the lesion's centre; ``minus`` is cut out of ``solid``."""

    tissue: str
    solid: Ellipsoid
    minus: Ellipsoid | None = None


@dataclass(frozen=True)
class Lesion:
    """A lesion: centre (world) and radius in units; ``host`` is the index of the part around it."""

    organ: str
    host: int
    centre: Point
    radius: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Scene:
    """A torso."""

    body: tuple[Ellipsoid, ...]  # their union is the body, with a layer of fat under the skin
    cage: Ellipsoid  # outer surface of the ribs
    fat: float  # thickness of the fat layer, units
    ribs: float  # phase of the ribs along y, in units of their spacing
    organs: tuple[Part, ...]  # in painting order
    lesions: tuple[Lesion, ...]  # one to four


def draw_scene(spec: SceneSpec, hosts: tuple[str, ...] = ORGANS, reach: float = math.inf) -> Scene:
    """Draw the scene of ``spec``, deterministic.

    Args:
        hosts: possible organs of further lesions.
        reach: maximum distance of further lesions from the first in the image plane, units.
    """
    rng = np.random.default_rng(spec.key)
    width, height = float(rng.uniform(0.94, 1.05)), float(rng.uniform(0.96, 1.03))
    shift = rng.uniform(-2.0, 2.0, size=2).tolist()
    play = iter(rng.uniform(-1.0, 1.0, size=(len(_TORSO) + _BOWELS, 7)).tolist())

    def place(centre: tuple, radii: tuple, angle: float = 0.0, loose: bool = False) -> Ellipsoid:
        """Scale and shift the template to this patient; loose parts vary individually as well."""
        dx, dy, dz, da, db, dc, turn = next(play) if loose else (0.0,) * 7
        (x, y, z), (a, b, c) = centre, radii
        return Ellipsoid(
            (x * width + dx + shift[0], y * height + dy + shift[1], z + dz),
            (a * width * (1 + 0.06 * da), b * height * (1 + 0.06 * db), c * (1 + 0.06 * dc)),
            angle + 0.1 * turn,
        )

    body = tuple(place(centre, radii) for centre, radii in _BODY)
    cage = place((0, -12, 0), (37.5, 43, 22))
    loops = rng.uniform((-20, 24, 0), (20, 36, math.pi), size=(_BOWELS, 3)).tolist()
    bowels = [Part("bowel", place((x, y, 8), (6, 4.5, 5), turn, loose=True)) for x, y, turn in loops]
    spine = [Part("bone", place((0, -49 + 7.0 * row, -16), (5.5, 2.9, 5.5))) for row in range(12)]
    torso = [Part(name, place(c, r, a, loose=True)) for name, c, r, a in _TORSO]
    organs = (*bowels, *spine, *torso)
    return Scene(
        body=body,
        cage=cage,
        fat=float(rng.uniform(2.0, 4.0)),
        ribs=float(rng.uniform(0, 1)),
        organs=organs,
        lesions=_draw_lesions(spec, organs, rng, hosts, reach),
    )


def _draw_lesions(
    spec: SceneSpec, organs: tuple[Part, ...], rng: np.random.Generator, hosts: tuple[str, ...], reach: float
) -> tuple[Lesion, ...]:
    """Draw ``spec.count`` lesions that do not overlap in any view."""
    parts = {name: [i for i, part in enumerate(organs) if part.tissue == name] for name in ORGANS}

    def draw(places: list) -> tuple[int, Point]:
        organ = hosts[rng.integers(len(hosts))] if places else spec.site
        host = parts[organ][rng.integers(len(parts[organ]))]
        return host, _site(organs[host], organ, RADII[spec.grade], rng)

    def fits(place: tuple[int, Point], places: list, apart: float) -> bool:
        if places and math.dist(place[1][:2], places[0][1][:2]) > reach:
            return False
        return all(
            math.dist(to_view(place[1], view)[:2], to_view(other, view)[:2]) >= apart
            for _, other in places
            for view in VIEWS.values()
        )

    lesions = []
    for host, centre in draw_apart(spec.count, 2 * RADII[spec.grade] + 3.0, draw, fits):
        radius = RADII[spec.grade] * float(rng.uniform(0.96, 1.04))
        pieces = _PIECES[spec.disease](radius, rng)
        lesions.append(Lesion(organs[host].tissue, host, centre, radius, pieces))
    return tuple(lesions)


def _site(part: Part, organ: str, radius: float, rng: np.random.Generator) -> Point:
    """Draw a lesion centre inside the organ; larger lesions are closer to the organ's centre."""
    area, turn, depth = rng.uniform((0, 0, -1.5), (1, 2 * math.pi, 1.5)).tolist()
    (x, y, z), (a, b, _) = part.solid.centre, part.solid.radii
    across, along = (0.75 * math.sqrt(area) * max(r - 0.8 * radius, 0.12 * r) for r in (a, b))
    up = 0.18 * b if organ == "lung" else 0.0  # clear of heart and liver
    return x + across * math.cos(turn), y - up + along * math.sin(turn), z + depth


def _cyst(radius: float, rng: np.random.Generator) -> tuple[Piece, ...]:
    """Smooth and homogeneous."""
    oval = rng.uniform(0.9, 1.0)
    return (Piece("cyst", Ellipsoid((0, 0, 0), (radius, radius * oval, DEPTH), rng.uniform(0, math.pi))),)


def _tumor(radius: float, rng: np.random.Generator) -> tuple[Piece, ...]:
    """A solid core with spicules."""
    core = Ellipsoid((0, 0, 0), (0.64 * radius, 0.58 * radius, DEPTH), rng.uniform(0, math.pi))
    number, start = int(rng.integers(7, 10)), rng.uniform(0, 2 * math.pi)
    pieces = [Piece("tumor", core)]
    for i in range(number):
        turn = start + 2 * math.pi * (i + rng.uniform(-0.2, 0.2)) / number
        middle, length = 0.6 * radius, rng.uniform(0.4, 0.5) * radius
        spot = (middle * math.cos(turn), middle * math.sin(turn), 0.0)
        pieces.append(Piece("tumor", Ellipsoid(spot, (length, max(0.12 * radius, 0.75), DEPTH), turn)))
    return tuple(pieces)


def _abscess(radius: float, rng: np.random.Generator) -> tuple[Piece, ...]:
    """A bright rim around a dark centre."""
    turn, oval = rng.uniform(0, math.pi), rng.uniform(0.92, 1.0)
    outer = Ellipsoid((0, 0, 0), (radius, radius * oval, DEPTH), turn)
    inner = Ellipsoid((0, 0, 0), (0.6 * radius, 0.6 * radius * oval, DEPTH), turn)
    return Piece("rim", outer, minus=inner), Piece("pus", inner)


def _hematoma(radius: float, rng: np.random.Generator) -> tuple[Piece, ...]:
    """A crescent: a disc minus an off-centre disc."""
    turn = rng.uniform(0, 2 * math.pi)
    offset = 0.62 * radius
    spot = (offset * math.cos(turn), offset * math.sin(turn), 0.0)
    bite = Ellipsoid(spot, (0.9 * radius, 0.9 * radius, DEPTH))
    return (Piece("blood", Ellipsoid((0, 0, 0), (radius, radius, DEPTH)), minus=bite),)


def _calcification(radius: float, rng: np.random.Generator) -> tuple[Piece, ...]:
    """A cluster of dots on a Fermat spiral, evenly spaced."""
    number = round(3.0 + 0.95 * radius)
    dot, start = max(0.12 * radius, 0.95), rng.uniform(0, 2 * math.pi)
    pieces = []
    for i in range(number):
        reach = (radius - dot) * math.sqrt((i + 0.5) / number)
        turn = start + i * math.pi * (3 - math.sqrt(5)) + rng.uniform(-0.12, 0.12)
        spot = (reach * math.cos(turn), reach * math.sin(turn), 0.0)
        pieces.append(Piece("calcium", Ellipsoid(spot, (dot, dot, DEPTH))))
    return tuple(pieces)


_PIECES = by_name(_cyst, _tumor, _abscess, _hematoma, _calcification)
