"""Make and read the images of cells, one after the other, and keep what is done."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ebca.bench.alignment.detector import Reading
from ebca.bench.alignment.journal import Journal, key
from ebca.bench.alignment.readings import from_text, to_text
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE, ORACLE, guide
from ebca.bench.alignment.rivals.model import Model
from ebca.bench.alignment.rivals.readers import Pending, Readers
from ebca.bench.alignment.rivals.sampler import sample

Readings = Mapping[str, list[Reading]]
"""By `key` of a cell's facts."""


class Runner:
    """Runs cells until a time is over.

    Args:
        batch: images at once.
        until: of `time.monotonic`; no cell is begun after it.
        on_cell: called with a cell, its readings, and the seconds that it took, when it is done.
    """

    def __init__(
        self,
        model: Model,
        readers: Readers,
        journal: Journal,
        *,
        batch: int = 512,
        until: float = float("inf"),
        on_cell: Callable[[Cell, list[Reading], float], None] | None = None,
    ) -> None:
        self.model, self.readers, self.until = model, readers, until
        self._journal, self._batch, self._on_cell = journal, batch, on_cell
        self.weights = _digest(model)
        self._places: dict[str, np.ndarray] = {}

    def run(self, cells: Iterable[Cell]) -> Readings:
        """The readings of all cells that are done; those of other runs are taken from the journal."""
        found: dict[str, list[Reading]] = {}
        open_: list[tuple[Cell, Pending[Reading], float]] = []
        for cell in cells:
            kept = self._journal.get(self._facts(cell))
            if kept is not None:
                found[key(cell.facts())] = from_text(kept["readings"])
            elif not self.is_over():
                began = time.monotonic()
                pending = self._begin(cell)
                open_.append((cell, pending, time.monotonic() - began))
            while open_ and open_[0][1].done():
                self._end(*open_.pop(0), found)
        for one in open_:
            self._end(*one, found)
        return found

    def finished(self, cells: Iterable[Cell]) -> Readings:
        """The readings of the cells that are in the journal."""
        kept = {key(cell.facts()): self._journal.get(self._facts(cell)) for cell in cells}
        return {name: from_text(record["readings"]) for name, record in kept.items() if record is not None}

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.until

    def _begin(self, cell: Cell) -> Pending[Reading]:
        places = self.places(cell) if cell.method == ORACLE else None
        images = self._images(cell, places)
        return self.readers.read(images, cell.scenes)

    def _end(self, cell: Cell, pending: Pending[Reading], seconds: float, found: dict[str, list[Reading]]) -> None:
        readings = pending.result()
        found[key(cell.facts())] = readings
        self._journal.add(self._facts(cell), {"readings": to_text(readings), "seconds": round(seconds, 3)})
        if self._on_cell:
            self._on_cell(cell, readings, seconds)

    def places(self, cell: Cell) -> np.ndarray:
        """Where the oracle puts the things, from the images of the base."""
        base = cell.base()
        name = key(base.facts())
        if name not in self._places:
            self._places[name] = self.readers.places(self._images(base), base.scenes, base.seeds)
        return self._places[name]

    def _images(self, cell: Cell, places: np.ndarray | None = None) -> np.ndarray:
        scenes, seeds, made = cell.scenes, cell.seeds, []
        method = guide(cell.method, cell.settings)
        for at in range(0, cell.count, self._batch):
            some = slice(at, at + self._batch)
            where = None if places is None else places[some]
            made.append(sample(self.model, method, scenes[some], seeds[some], cell.sampling, where))
        return np.concatenate(made)

    def _facts(self, cell: Cell) -> dict[str, Any]:
        return {**cell.facts(), "weights": self.weights, "device": self.model.device.type}

    def seconds_per_image(self, cells: Sequence[Cell], images: int, rounds: int) -> dict[str, float]:
        """The mean time of each method for `images` images at once, from rounds in which all take turns."""
        few = [replace(cell, count=images) for cell in cells]
        # For memory and the choice of algorithms.
        self._images(few[0])
        seconds = dict.fromkeys((cell.method for cell in few), 0.0)
        for _ in range(rounds):
            for cell in few:
                began = time.monotonic()
                self._images(cell)
                seconds[cell.method] += (time.monotonic() - began) / (images * rounds)
        return seconds


def allow_fast_products(device: str) -> None:
    """Products and convolutions in TF32 on a GPU, for this process."""
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def base_of(cell: Cell, found: Readings) -> list[Reading] | None:
    """The readings of the base for the same images, if they are there."""
    return found.get(key(cell.base().facts())) if cell.method != BASE else None


def _digest(model: Model) -> str:
    whole = hashlib.sha256()
    for file in sorted(model.folder.rglob("*.safetensors")):
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]
