"""Where the things of a scene are, or could be, in its base image."""

import math
from collections.abc import Sequence

import numpy as np

from ebca.bench.alignment.detector import Found
from ebca.bench.alignment.scenes import SIZE, Scene

_RADIUS = 9.5
"""Of a thing that is put at a free place, in pixels."""
_EDGE = 11
_TRIES = 400


def own_layout(scene: Scene, found: Sequence[Found], seed: int) -> list[tuple[float, float, float]]:
    """Centre and radius in pixels of every thing: as found in the base image, the missing ones at free places."""
    rng = np.random.default_rng((seed, 98))
    places: list[tuple[float, float, float] | None] = []
    for thing in scene.things:
        hit = next((f for f in found if f.thing == thing), None)
        places.append((hit.x, hit.y, max(8.0, 1.15 * math.sqrt(hit.area / math.pi))) if hit else None)
    for index, place in enumerate(places):
        if place is None:
            taken = [other for other in places if other is not None]
            tries = rng.integers(_EDGE, SIZE - _EDGE, (_TRIES, 2))
            gaps = [min((math.hypot(x - a, y - b) - r for a, b, r in taken), default=0.0) for x, y in tries]
            x, y = tries[int(np.argmax(gaps))]
            places[index] = (float(x), float(y), _RADIUS)
    return [place for place in places if place is not None]
