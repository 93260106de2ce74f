"""Bright-field microscopy: dyes absorb by Beer-Lambert, each with optical densities in red, green and blue.

Stain vectors: haematoxylin and eosin from Macenko et al. 2009, diaminobenzidine from Ruifrok and Johnston
2001, Schiff's reagent and Giemsa's azure from Fiji's colour deconvolution (Landini).
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from medvlm_r1.phantom.physics.paint import (
    Picture,
    Points,
    axes,
    blobs,
    cloud,
    jittered_lattice,
    sample_at,
    soft,
)
from medvlm_r1.phantom.scenes.histology import Section
from medvlm_r1.phantom.spec import by_name

_HEMATOXYLIN = (0.563, 0.720, 0.406)
_EOSIN = (0.216, 0.801, 0.558)
_DAB = (0.268, 0.570, 0.776)
_SCHIFF = (0.175, 0.972, 0.155)
_AZURE = (0.834, 0.513, 0.202)

# Per stain: dyes with the optical density of nuclei, cytoplasm, fibres, mucin and red cells.
_PARTS = ("nuclei", "cytoplasm", "fibres", "mucin", "blood")
STAINS: dict[str, tuple[tuple[tuple[float, float, float], tuple[float, ...]], ...]] = {
    "HE": ((_HEMATOXYLIN, (1.35, 0.10, 0.04, 0.16, 0.0)), (_EOSIN, (0.25, 0.42, 0.62, 0.06, 1.15))),
    "PAS": ((_HEMATOXYLIN, (0.70, 0.02, 0.0, 0.0, 0.0)), (_SCHIFF, (0.10, 0.18, 0.75, 1.5, 0.85))),
    "IHC": ((_HEMATOXYLIN, (0.75, 0.10, 0.10, 0.03, 0.12)), (_DAB, (0.15, 0.75, 0.12, 0.05, 0.25))),
    "Giemsa": ((_AZURE, (1.45, 0.42, 0.16, 0.30, 0.10)), (_EOSIN, (0.55, 0.12, 0.22, 0.02, 0.55))),
}


class _Tissue:
    """Amount of each part per pixel; nuclei as rows of x, y, radius, stretch, angle and density."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.parts = {name: np.zeros((size, size), np.float32) for name in _PARTS}
        self.cells: list[Float[np.ndarray, "n 6"]] = []

    def nuclei(
        self,
        places: Points,
        radius: float,
        stretch: float = 1.2,
        angles: Float[np.ndarray, "n"] | None = None,
        spread: float = 0.12,
        density: float = 0.8,
    ) -> None:
        """Add nuclei at ``places``."""
        n, rng = len(places), self.rng
        turns = rng.uniform(0, math.pi, n) if angles is None else angles + rng.normal(0, 0.12, n)
        rows = [
            *places.T,
            radius * np.exp(spread * rng.standard_normal(n)),
            1.0 + (stretch - 1.0) * rng.uniform(0.7, 1.3, n),
            turns,
            density * rng.uniform(0.8, 1.2, n),
        ]
        self.cells.append(np.stack(rows, -1))


def microscopy(
    scene: Section, acquisition: str, rng: np.random.Generator, size: int
) -> Float[np.ndarray, "size size 3"]:
    """Render a stained section, in colour."""
    own = np.random.default_rng(scene.key)
    healthy, diseased = _Tissue(size, own), _Tissue(size, own)
    _SITES[scene.site](healthy)
    _LESIONS[scene.disease](diseased, scene)
    x, y = axes(size)
    inside = np.max([lesion.inside(x, y) for lesion in scene.lesions], axis=0)
    for cells in healthy.cells:
        cells[sample_at(inside, cells[:, :2]) > -0.8, 2] = 0.0
    for cells in diseased.cells:
        cells[sample_at(inside, cells[:, :2]) < 0.3, 2] = 0.0
    share = soft(inside, 1.5)
    parts = {name: part + share * (diseased.parts[name] - part) for name, part in healthy.parts.items()}
    seen = np.zeros((size, size), np.float32)
    for cells in (*healthy.cells, *diseased.cells):
        cells = cells[(cells[:, 2] > 0) & (np.abs(cells[:, :2]).max(1) < 60)]
        np.maximum(seen, blobs(cells[:, :2], cells[:, 2], size, *cells[:, 3:].T), out=seen)
    parts["nuclei"] = parts["nuclei"] + seen
    return _transmit(parts, acquisition, rng, size)


def _transmit(
    parts: dict[str, Picture], stain: str, rng: np.random.Generator, size: int
) -> Float[np.ndarray, "size size 3"]:
    """Compute the transmitted light, with random variation of dyes and thickness."""
    density = np.zeros((size, size, 3), np.float32)
    thick = 1.0 + 0.07 * cloud(rng, 22.0, size)
    for vector, amounts in STAINS[stain]:
        colour = np.maximum(np.asarray(vector) + rng.normal(0, 0.025, 3), 0).astype(np.float32)
        taken = sum(amount * parts[name] for name, amount in zip(_PARTS, amounts, strict=True))
        density += (taken * thick * rng.uniform(0.85, 1.2))[..., None] * colour
    grain = 0.012 * rng.standard_normal((size, size, 1), dtype=np.float32)
    return 0.97 * np.exp(-1.25 * density) + grain


def _stroma(tissue: _Tissue, amount: float = 0.5) -> None:
    """Add loose connective tissue everywhere."""
    fibres = cloud(tissue.rng, 2.6, tissue.size)
    tissue.parts["fibres"] += np.clip(amount * (0.75 + 0.35 * fibres), 0, 1)


def _rings(
    centres: Points, radii: Float[np.ndarray, "n"], count: int
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m"]]:
    """Return ``count`` points on a circle around each centre, and their angles in radians."""
    turn = np.linspace(0, 2 * math.pi, count + 1)[:-1]
    ring = np.stack([np.cos(turn), np.sin(turn)], -1)
    return (centres[:, None] + radii[:, None, None] * ring).reshape(-1, 2), np.tile(turn, len(centres))


# Sites -------------------------------------------------------------------------------------------------


def _colon(tissue: _Tissue) -> None:
    """Crypts in cross-section: lumen, goblet cells with mucin, nuclei at the outer border."""
    _stroma(tissue)
    centres = jittered_lattice(tissue.rng, 25.0, 0.08)
    radii = tissue.rng.uniform(9.8, 11.4, len(centres))
    crypt = blobs(centres, radii, tissue.size)
    lumen = blobs(centres, 0.20 * radii, tissue.size, 1.6, tissue.rng.uniform(0, 3, len(centres)))
    goblets, _ = _rings(centres, 0.56 * radii, 10)
    mucin = blobs(goblets, np.full(len(goblets), 2.1), tissue.size)
    tissue.parts["fibres"] *= 1.0 - crypt
    tissue.parts["cytoplasm"] += crypt * (1.0 - mucin) * (1.0 - lumen)
    tissue.parts["mucin"] += 0.75 * mucin * (1.0 - lumen)
    basal, angles = _rings(centres, 0.87 * radii, 18)
    tissue.nuclei(basal, 0.95, 1.7, angles)
    loose = jittered_lattice(tissue.rng, 5.0, 0.4)
    tissue.nuclei(loose[sample_at(crypt, loose) < 0.1], 0.8, 1.4)


def _lung(tissue: _Tissue) -> None:
    """Air spaces between thin walls, the edges of Voronoi cells."""
    seeds = jittered_lattice(tissue.rng, 22.0, 0.28)
    x, y = axes(tissue.size)
    bend = 1.6 * cloud(tissue.rng, 9.0, tissue.size)
    away, _ = KDTree(seeds).query(np.stack([x + bend, y - bend], -1), 2)
    wall = soft(2.6 - (away[..., 1] - away[..., 0]), 1.4).astype(np.float32)
    tissue.parts["cytoplasm"] += 0.55 * wall
    tissue.parts["fibres"] += 0.40 * wall
    places = jittered_lattice(tissue.rng, 3.0, 0.4)
    tissue.nuclei(places[sample_at(wall, places) > 0.8], 0.85, 1.5)


def _kidney(tissue: _Tissue) -> None:
    """Tubules, and a glomerulus in its capsule."""
    _stroma(tissue, 0.35)
    rng = tissue.rng
    centres = jittered_lattice(rng, 15.0, 0.06)
    glomerulus = rng.uniform(-30, 30, 2)
    centres = centres[np.hypot(*(centres - glomerulus).T) > 22.0]
    radii = rng.uniform(6.5, 7.6, len(centres))
    stretch, angles = rng.uniform(1.0, 1.25, len(centres)), rng.uniform(0, 3, len(centres))
    tube = blobs(centres, radii, tissue.size, stretch, angles)
    lumen = blobs(centres, 0.30 * radii, tissue.size)
    capsule = blobs(glomerulus[None], np.array([15.5]), tissue.size)
    tuft = blobs(glomerulus[None] + 0.8, np.array([12.6]), tissue.size)
    for name in tissue.parts:
        tissue.parts[name] *= 1.0 - capsule
    tissue.parts["fibres"] *= 1.0 - tube
    tissue.parts["cytoplasm"] += 1.15 * tube * (1.0 - lumen)
    loops = 0.55 + 0.35 * np.sign(cloud(rng, 2.2, tissue.size))
    tissue.parts["cytoplasm"] += 0.8 * tuft * loops
    tissue.parts["mucin"] += 0.22 * tuft * loops
    around, _ = _rings(centres, 0.62 * radii, 6)
    tissue.nuclei(around + rng.normal(0, 0.3, around.shape), 1.05, 1.1)
    inner = jittered_lattice(rng, 2.9, 0.35)
    tissue.nuclei(inner[np.hypot(*(inner - glomerulus - 0.8).T) < 11.0], 0.9, 1.3)


def _muscle(tissue: _Tissue) -> None:
    """Fibres in longitudinal section, with flat nuclei between them."""
    rng = tissue.rng
    turn = rng.uniform(-0.6, 0.6)
    x, y = axes(tissue.size)
    across = math.cos(turn) * y - math.sin(turn) * x + 1.6 * cloud(rng, 26.0, tissue.size)
    along = math.cos(turn) * x + math.sin(turn) * y
    fibre = np.abs(np.cos(math.pi * across / 8.5))
    striae = 0.06 * np.cos(2 * math.pi * along / 2.6)
    tissue.parts["fibres"] += 1.15 * soft(fibre - 0.16, 0.2) * (1.0 + striae)
    places = jittered_lattice(rng, 5.2, 0.4)
    places = places[sample_at(fibre, places) < 0.34]
    tissue.nuclei(places, 0.95, 3.2, np.full(len(places), turn))


def _epidermis(tissue: _Tissue) -> None:
    """Skin: layered horn, living cells on a wavy base, fibres below."""
    rng = tissue.rng
    x, y = axes(tissue.size)
    wave = 5.0 * np.sin(2 * math.pi * x / rng.uniform(26, 34) + rng.uniform(0, 6))
    wave = wave + 2.0 * cloud(rng, 16.0, tissue.size)
    top = rng.uniform(-34, -27)
    base = rng.uniform(6, 13) + wave
    horn = soft(top + 0.25 * wave - y, 1.5) * soft(y + 53 + 0.2 * wave, 1.5)
    living = soft(y - top - 0.25 * wave, 1.5) * soft(base - y, 1.5)
    dermis = soft(y - base, 1.5)
    lamellae = 0.5 + 0.5 * np.sin(2 * math.pi * (y - 0.25 * wave + 0.8 * cloud(rng, 9.0, tissue.size)) / 3.4)
    tissue.parts["fibres"] += 1.3 * horn * (0.35 + 0.65 * lamellae)
    tissue.parts["cytoplasm"] += 1.0 * living
    tissue.parts["nuclei"] += 0.10 * living
    tissue.parts["fibres"] += dermis * np.clip(0.62 + 0.3 * cloud(rng, 3.2, tissue.size), 0, 1)
    cells = jittered_lattice(rng, 4.3, 0.25)
    tissue.nuclei(cells[sample_at(living, cells) > 0.9], 1.05, 1.2)
    columns = np.arange(-56, 56, 1.9)
    level = base[np.clip(np.rint((40 + 56) * tissue.size / 112).astype(int), 0, tissue.size - 1)]
    level = np.interp(columns, x[0], level)
    basal, upright = np.stack([columns, level - 1.6], -1), np.full(len(columns), math.pi / 2)
    tissue.nuclei(basal, 1.0, 1.7, upright, density=1.0)
    few = jittered_lattice(rng, 8.5, 0.4)
    tissue.nuclei(few[sample_at(dermis, few) > 0.9], 0.7, 2.4)


_SITES = by_name(_colon, _lung, _kidney, _muscle, _epidermis)


# Lesions: tissue inside a focus; the caller cuts it out along the outline. ---------------------------------


def _inflammation(tissue: _Tissue, scene: Section) -> None:
    """Lymphocytes: small, round and dark, with little cytoplasm."""
    tissue.parts["fibres"] += 0.22
    tissue.nuclei(jittered_lattice(tissue.rng, 2.7, 0.25), 1.0, 1.05, spread=0.06, density=1.25)


def _necrosis(tissue: _Tissue, scene: Section) -> None:
    """Ghost cells: smooth and pink, with fragments of nuclei."""
    tissue.parts["cytoplasm"] += 0.75 + 0.12 * cloud(tissue.rng, 5.0, tissue.size)
    tissue.parts["fibres"] += 0.45
    tissue.nuclei(jittered_lattice(tissue.rng, 5.5, 0.5), 0.34, 1.2, spread=0.3)


def _fibrosis(tissue: _Tissue, scene: Section) -> None:
    """Collagen in whorls with a few thin nuclei."""
    x, y = axes(tissue.size)
    bend = 1.2 * cloud(tissue.rng, 8.0, tissue.size)
    far = np.min([np.hypot(x - o.centre[0], y - o.centre[1]) for o in scene.lesions], axis=0)
    band = 0.5 + 0.5 * np.cos(2 * math.pi * (far + bend) / 4.2)
    tissue.parts["fibres"] += 0.25 + 1.0 * band
    places = jittered_lattice(tissue.rng, 7.0, 0.4)
    centres = np.array([o.centre for o in scene.lesions])
    away = places[:, None] - centres
    nearest = np.hypot(*np.moveaxis(away, -1, 0)).argmin(1)
    way = away[np.arange(len(places)), nearest]
    tissue.nuclei(places, 0.85, 4.5, np.arctan2(way[:, 1], way[:, 0]) + math.pi / 2)


def _carcinoma(tissue: _Tissue, scene: Section) -> None:
    """Crowded large nuclei of varying size and shape, some in mitosis."""
    tissue.parts["cytoplasm"] += 0.75
    places = jittered_lattice(tissue.rng, 5.0, 0.22)
    tissue.nuclei(places, 1.95, 1.35, spread=0.28, density=0.85)
    tissue.nuclei(places[tissue.rng.uniform(size=len(places)) < 0.08] + 1.2, 1.3, 3.0, density=1.7)


def _hemorrhage(tissue: _Tissue, scene: Section) -> None:
    """Red cells: discs without nuclei."""
    cells = jittered_lattice(tissue.rng, 2.9, 0.2)
    tissue.parts["blood"] += 0.35 + 0.75 * blobs(cells, np.full(len(cells), 1.2), tissue.size)


_LESIONS = by_name(_inflammation, _necrosis, _fibrosis, _carcinoma, _hemorrhage)
