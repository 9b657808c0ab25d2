"""What the study runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ebca.bench.alignment.prompts import KINDS
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE, EXCLUSIVE, GRIDS, ORACLE, Settings
from ebca.bench.alignment.rivals.sampler import Sampling
from ebca.bench.alignment.rivals.search import search_cells

PARTS = ("development", "held-out", "rivals", "ceiling")
RIVALS = ("attend-and-excite", "attention-regulation")

_BOTH_SCHEDULERS = (Sampling("ddim", 25), Sampling("pndm", 50), Sampling("ddim", 25, 7.5), Sampling("pndm", 50, 7.5))


@dataclass(frozen=True)
class Plan:
    """Numbers of images of each cell, and what they are made of.

    seed: of the first held-out image; no earlier search has used seeds from there on.
    """

    search_count: int = 192
    search_kinds: tuple[str, ...] = ("three", "two", "relation")
    search: Sampling = field(default_factory=Sampling)
    held_out_count: int = 512
    held_out_kinds: tuple[str, ...] = ("three", "relation", "two", "one", "unseen")
    held_out: tuple[Sampling, ...] = _BOTH_SCHEDULERS
    rival_search_count: int = 96
    rival_kinds: tuple[str, ...] = ("three", "two")
    seed: int = 20_000
    timed_images: tuple[int, ...] = (1, 64)
    rounds: int = 2
    grids: Mapping[str, tuple[Settings, ...]] = field(default_factory=lambda: GRIDS)

    def __post_init__(self) -> None:
        assert set(self.held_out_kinds) <= set(KINDS)

    def development(self) -> list[Cell]:
        """Settings of exclusive attention."""
        grid = self.grids[EXCLUSIVE]
        return search_cells(EXCLUSIVE, self.search_kinds, self.search_count, self.search, grid)

    def held_out_cells(self, exclusive: Settings) -> list[Cell]:
        """The one test of the chosen settings."""
        settings: dict[str, Settings] = {BASE: {}, EXCLUSIVE: exclusive, "ebcu": {}, "both": exclusive}
        return [
            Cell(method, kind, "held-out", self.held_out_count, self.seed, sampling, chosen)
            for sampling in self.held_out
            for kind in self.held_out_kinds
            for method, chosen in settings.items()
        ]

    def rival_search(self, method: str) -> list[Cell]:
        """Settings of a rival, or of the oracle."""
        return search_cells(method, self.rival_kinds, self.rival_search_count, self.search, self.grids[method])

    def rival_cells(self, chosen: Mapping[str, Settings]) -> list[Cell]:
        """Methods with their chosen settings against the base, on the images of `held_out_cells`."""
        return [
            Cell(method, kind, "held-out", self.held_out_count, self.seed, self.held_out[0], settings)
            for kind in self.rival_kinds
            for method, settings in {BASE: {}, **chosen}.items()
        ]

    def everything(self) -> list[Cell]:
        """All cells with default settings, to estimate the time."""
        names = (*RIVALS, ORACLE)
        defaults: dict[str, Settings] = {name: {} for name in names}
        cells = [*self.development(), *self.held_out_cells({}), *self.rival_cells(defaults)]
        return cells + [cell for name in names for cell in self.rival_search(name)]
