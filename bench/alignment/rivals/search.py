"""A search for the settings of a method, on development prompts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE, GRIDS, Settings
from ebca.bench.alignment.rivals.results import score
from ebca.bench.alignment.rivals.runner import Readings
from ebca.bench.alignment.rivals.sampler import Sampling

SPLIT = "development"


def search_cells(
    method: str, kinds: Sequence[str], count: int, sampling: Sampling, grid: Iterable[Settings] | None = None
) -> list[Cell]:
    """The base's cells, then those of every setting of the grid."""
    tried: list[tuple[str, Settings]] = [(BASE, {})]
    if method != BASE:
        tried += [(method, settings) for settings in (GRIDS[method] if grid is None else grid)]
    return [
        Cell(name, kind, SPLIT, count, sampling=sampling, settings=settings)
        for name, settings in tried
        for kind in kinds
    ]


def best(cells: Sequence[Cell], found: Readings, method: str) -> Mapping[str, Any] | None:
    """The settings with the largest mean share of correct images; the first of equal ones, None if none is complete."""
    chosen, highest = None, -1.0
    for settings, reached in scores(cells, found, method):
        if reached is not None and reached > highest:
            chosen, highest = settings, reached
    return chosen


def scores(cells: Sequence[Cell], found: Readings, method: str) -> list[tuple[Settings, float | None]]:
    """The settings of a method in order, with their scores."""
    by_settings: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.method == method:
            # The grid's own object: equal settings of one grid would be one.
            by_settings.setdefault(id(cell.settings), []).append(cell)
    return [(some[0].settings, score(some, found)) for some in by_settings.values()]
