"""Which images are compared: one method for one kind of prompts, under one sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ebca.bench.alignment.prompts import prompts
from ebca.bench.alignment.rivals.methods import BASE, COSTS, shown
from ebca.bench.alignment.rivals.sampler import Sampling
from ebca.bench.alignment.scenes import Scene

GFLOP_PER_ROW = 0.403
"""Operations of one evaluation of the UNet of `shapes` for one row, counted with PyTorch's FlopCounterMode."""


@dataclass(frozen=True, eq=False)
class Cell:
    """Image i has prompt i of the kind (repeated if there are fewer) and seed `seed` + i."""

    method: str
    kind: str
    split: str
    count: int
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scenes(self) -> list[Scene]:
        available = prompts(self.kind, self.split)
        return [available[i % len(available)] for i in range(self.count)]

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.count)]

    @property
    def row_evaluations(self) -> float:
        """What it takes, in evaluations of one row of the UNet; an estimate for methods with backward passes."""
        extra = 1 if self.sampling.scheduler == "pndm" else 0
        return self.count * 2 * (self.sampling.steps + extra) * COSTS.get(self.method, 1.0)

    def facts(self) -> dict[str, Any]:
        """All that decides about the images, beside the model, as JSON."""
        return {
            "method": self.method,
            "settings": {name: _plain(value) for name, value in self.settings.items()},
            "kind": self.kind,
            "split": self.split,
            "count": self.count,
            "seed": self.seed,
            **self.sampling.__dict__,
        }

    def base(self) -> "Cell":
        """The base's cell with the same images otherwise."""
        return Cell(BASE, self.kind, self.split, self.count, self.seed, self.sampling)

    def __str__(self) -> str:
        return f"{self.kind}, {self.sampling}, {self.method}: {shown(self.settings)}"


def petaflop(cells: Sequence[Cell]) -> float:
    """Operations of all cells, in 1e15; an estimate."""
    return sum(cell.row_evaluations for cell in cells) * GFLOP_PER_ROW / 1e6


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value
