"""Outlines of flat lesions: circles with a sum of waves."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Spot = tuple[float, float]  # x and y, units


@dataclass(frozen=True)
class Outline:
    """A closed curve: distance from the centre in direction t is ``radius (1 + sum a_k cos(k t + p_k))``."""

    centre: Spot
    radius: float  # units
    waves: tuple[tuple[int, float, float], ...] = ()  # k, a_k and p_k

    def inside(self, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Signed distance to the curve along the radius, units; positive inside."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        turn = np.arctan2(dy, dx)
        reach = 1.0 + sum(a * np.cos(k * turn + p) for k, a, p in self.waves)
        return self.radius * reach - np.hypot(dx, dy)


def draw_outline(centre: Spot, radius: float, roughness: float, rng: np.random.Generator) -> Outline:
    """Draw an outline; amplitudes fall with wave number, ``roughness`` is that of the longest wave."""
    amplitudes = [(k, roughness * float(rng.uniform(0.5, 1)) / (k - 1)) for k in range(2, 8)]
    return Outline(centre, radius, tuple((k, a, float(rng.uniform(0, 6.3))) for k, a in amplitudes))
