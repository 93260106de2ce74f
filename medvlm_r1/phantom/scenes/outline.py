"""Outlines of flat lesions: circles with a sum of waves."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Outline:
    """A closed curve: distance from the centre in direction t is ``radius (1 + sum a_k cos(k t + p_k))``.

    Attributes:
        centre: x and y, units.
        radius: mean radius, units.
        waves: k, a_k and p_k.
    """

    centre: tuple[float, float]
    radius: float
    waves: tuple[tuple[int, float, float], ...] = ()

    def inside(self, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Signed distance to the curve along the radius, units; positive inside."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        turn = np.arctan2(dy, dx)
        reach = 1.0 + sum(a * np.cos(k * turn + p) for k, a, p in self.waves)
        return self.radius * reach - np.hypot(dx, dy)


def draw_outline(
    centre: tuple[float, float], radius: float, roughness: float, rng: np.random.Generator, waves: int = 6
) -> Outline:
    """Draw an outline; amplitudes fall with wave number, ``roughness`` is that of the longest wave."""
    amplitudes = [(k, roughness * float(rng.uniform(0.5, 1)) / (k - 1)) for k in range(2, 2 + waves)]
    return Outline(centre, radius, tuple((k, a, float(rng.uniform(0, 6.3))) for k, a in amplitudes))
