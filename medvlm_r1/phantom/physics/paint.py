"""Drawing functions that several modalities share. Lengths are in units (112 across the image)."""

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from medvlm_r1.phantom.scenes.geometry import FIELD, coordinates

Picture = Float[np.ndarray, "size size"]
Points = Float[np.ndarray, "n 2"]


def axes(size: int) -> tuple[Float[np.ndarray, "1 size"], Float[np.ndarray, "size 1"]]:
    """Return x and y of the pixels in units, for broadcasting."""
    axis = coordinates(size)
    return axis[None], axis[:, None]


def soft(signed: Float[np.ndarray, "..."], width: float = 1.0) -> Float[np.ndarray, "..."]:
    """Step function of ``signed`` (units): 0 below, 1 above zero, with a ramp ``width`` units wide."""
    return np.clip(signed / width + 0.5, 0.0, 1.0)


def cloud(rng: np.random.Generator, scale: float, size: int) -> Picture:
    """Draw smooth noise of mean 0 and variance 1 with a correlation length of about ``scale`` units."""
    coarse = max(8, min(size, round(3 * FIELD / scale)))  # a smooth field needs few samples
    white = gaussian_filter(rng.standard_normal((coarse, coarse)), scale * coarse / FIELD, mode="wrap")
    white = (white - white.mean()) / white.std()
    if coarse < size:
        picture = Image.fromarray(white.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(picture)
    return white.astype(np.float32)


def blobs(
    centres: Points,
    radii: Float[np.ndarray, "n"],
    size: int,
    stretch: Float[np.ndarray, "n"] | float = 1.0,
    angles: Float[np.ndarray, "n"] | float = 0.0,
    values: Float[np.ndarray, "n"] | float = 1.0,
) -> Picture:
    """Draw filled ellipses with soft edges; overlaps take the largest value.

    Args:
        centres: units.
        radii: mean radius of each, units.
        stretch: ratio of the longer to the shorter radius.
        angles: direction of the longer radius, radians.
        values: pixel value of each ellipse.
    """
    full = np.zeros((size, size), np.float32)
    number = len(centres)
    if not number:
        return full
    scale = size / FIELD
    radii, stretch, angles, values = (
        np.broadcast_to(np.asarray(part, np.float32), number) for part in (radii, stretch, angles, values)
    )
    reach = int(np.ceil((np.max(radii * np.sqrt(stretch)) + 1.0) * scale))
    offsets = np.arange(-reach, reach + 1, dtype=np.int32)
    place = ((centres + FIELD / 2) * scale - 0.5).astype(np.float32)
    corner = np.rint(place).astype(int)
    columns, rows = corner[:, :1] + offsets, corner[:, 1:] + offsets
    dx = ((columns - place[:, :1]) / scale)[:, None, :]
    dy = ((rows - place[:, 1:]) / scale)[:, :, None]
    # (x / long)^2 + (y / short)^2 along the rotated axes, expanded to allocate one array of the result's size
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    by_long, by_short = (  # 1 / long^2 and 1 / short^2
        (1.0 / (radii**2 * part))[:, None, None] for part in (stretch, 1.0 / stretch)
    )
    square = (2 * cos * sin * (by_long - by_short) * dx) * dy
    square += (cos**2 * by_long + sin**2 * by_short) * dx**2
    square += (sin**2 * by_long + cos**2 * by_short) * dy**2
    edge = (radii * scale)[:, None, None]
    share = np.sqrt(np.maximum(square, 0.0, out=square), out=square)
    share *= -edge
    share += edge + 0.5
    share = np.clip(share, 0.0, 1.0, out=share)
    share *= values[:, None, None]
    blob, down, across = np.nonzero(share)
    rows, columns = rows[blob, down], columns[blob, across]
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    flat = rows[inside] * size + columns[inside]
    np.maximum.at(full.ravel(), flat, share[blob, down, across][inside])
    return full


def strokes(lines: list[tuple[Float[np.ndarray, "_ 2"], float]], size: int, fine: int = 3) -> Picture:
    """Draw polylines (points, width in units): 1 on a line, 0 elsewhere."""
    edge = size * fine
    canvas = Image.new("L", (edge, edge))
    draw = ImageDraw.Draw(canvas)
    scale = edge / FIELD
    for points, width in lines:
        path = [tuple(p) for p in ((np.asarray(points) + FIELD / 2) * scale).tolist()]
        draw.line(path, fill=255, width=max(1, round(width * scale)), joint="curve")
    return np.asarray(canvas.reduce(fine), np.float32) / 255.0


def jittered_lattice(rng: np.random.Generator, spacing: float, jitter: float = 0.3) -> Points:
    """Draw points of a hexagonal lattice over the image, each shifted by up to ``jitter`` spacings."""
    reach = np.arange(-FIELD / 2 - spacing, FIELD / 2 + spacing, spacing)
    x, y = np.meshgrid(reach, np.arange(reach[0], -reach[0], 0.866 * spacing))
    x = x + 0.5 * spacing * (np.arange(len(y)) % 2)[:, None]
    points = np.stack([x.ravel(), y.ravel()], -1)
    return points + rng.uniform(-jitter, jitter, points.shape) * spacing


def sample_at(picture: Picture, points: Points) -> Float[np.ndarray, "n"]:
    """Return the values of the pixels nearest to the points; outside, those of the border."""
    size = len(picture)
    index = np.clip(np.rint((points + FIELD / 2) * size / FIELD - 0.5).astype(int), 0, size - 1)
    return picture[index[:, 1], index[:, 0]]
