"""The parts of the study. Each writes its results as soon as it is done, and takes what is done from the journal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ebca import console
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE, EXCLUSIVE, ORACLE, Settings
from ebca.bench.alignment.rivals.results import to_json
from ebca.bench.alignment.rivals.runner import Readings, Runner
from ebca.bench.alignment.rivals.search import best, scores
from ebca.bench.alignment.study.plan import PARTS, RIVALS, Plan


class Study:
    """The parts in order.

    Args:
        folder: where the results are written.
        exclusive: settings of exclusive attention; None chooses those that are best on development prompts.
    """

    def __init__(self, runner: Runner, plan: Plan, folder: Path, exclusive: Settings | None = None) -> None:
        self._runner, self._plan, self._folder, self._given = runner, plan, folder, exclusive

    def run(self, parts: Sequence[str] = PARTS) -> bool:
        """Run these parts. Returns whether all of their cells are done."""
        bodies = {
            "development": self._development,
            "held-out": self._held_out,
            "rivals": self._rivals,
            "ceiling": self._ceiling,
        }
        complete = True
        for part in PARTS:
            if part in parts:
                complete = bodies[part]() and complete
        return complete

    def _development(self) -> bool:
        cells = self._plan.development()
        found = self._runner.run(cells)
        return self._write("development", cells, found, {"scores": {EXCLUSIVE: _scores(cells, found, EXCLUSIVE)}})

    def _held_out(self) -> bool:
        cells = self._plan.held_out_cells(self._exclusive())
        return self._write("held-out", cells, self._runner.run(cells), {})

    def _rivals(self) -> bool:
        cells: list[Cell] = []
        found: dict[str, Any] = {}
        chosen: dict[str, Settings] = {EXCLUSIVE: self._exclusive()}
        tried: dict[str, Any] = {}
        for method in RIVALS:
            self._search(method, cells, found, chosen, tried)
        final = self._plan.rival_cells(chosen)
        found.update(self._runner.run(final))
        seconds = self._seconds([cell for cell in final if cell.kind == self._plan.rival_kinds[0]])
        return self._write("rivals", [*cells, *final], found, {"scores": tried, "seconds_per_image": seconds})

    def _ceiling(self) -> bool:
        cells: list[Cell] = []
        found: dict[str, Any] = {}
        chosen: dict[str, Settings] = {}
        tried: dict[str, Any] = {}
        self._search(ORACLE, cells, found, chosen, tried)
        final = self._plan.rival_cells(chosen)
        found.update(self._runner.run(final))
        return self._write("ceiling", [*cells, *final], found, {"scores": tried})

    def _search(
        self, method: str, cells: list[Cell], found: dict[str, Any], chosen: dict[str, Settings], tried: dict[str, Any]
    ) -> None:
        """Add the search for a method's settings, and what it chose."""
        some = self._plan.rival_search(method)
        found.update(self._runner.run(some))
        # The base's cells are the same for all methods.
        cells += [cell for cell in some if cell.method != BASE or not cells]
        settings = best(some, found, method)
        chosen[method] = {} if settings is None else settings
        tried[method] = _scores(some, found, method)

    def _exclusive(self) -> Settings:
        """The settings given, else the best ones of what the search has finished, else the defaults."""
        if self._given is not None:
            return self._given
        cells = self._plan.development()
        found = self._runner.finished(cells)
        return best(cells, found, EXCLUSIVE) or {}

    def _seconds(self, cells: Sequence[Cell]) -> dict[str, Any]:
        if self._runner.is_over():
            return {}
        return {
            str(images): self._runner.seconds_per_image(cells, images, self._plan.rounds)
            for images in self._plan.timed_images
        }

    def _write(self, part: str, cells: Sequence[Cell], found: Readings, more: Mapping[str, Any]) -> bool:
        entries = to_json(cells, found, self._runner.readers)
        report = {"part": part, "complete": len(entries) == len(cells), **self._facts(), **more, "cells": entries}
        console.write_json(self._folder / f"{part}.json", report)
        print(f"{part}: {len(entries)} of {len(cells)} cells, {self._folder / f'{part}.json'}", flush=True)
        return len(entries) == len(cells)

    def _facts(self) -> dict[str, Any]:
        model = self._runner.model
        on_gpu = model.device.type == "cuda"
        return {
            "model": model.folder.name,
            "weights": self._runner.weights,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "precision": "float32, products in TF32" if on_gpu else "float32",
            "torch": torch.__version__,
            "exclusive": dict(self._exclusive()),
        }


def _scores(cells: Sequence[Cell], found: Readings, method: str) -> list[dict[str, Any]]:
    return [{"settings": dict(settings), "correct": reached} for settings, reached in scores(cells, found, method)]
