"""Cells with their readings as JSON, with paired statistics."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ebca.bench.alignment.detector import Reading
from ebca.bench.alignment.journal import key
from ebca.bench.alignment.readings import measures, to_text, vector
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE
from ebca.bench.alignment.rivals.readers import Readers
from ebca.bench.alignment.rivals.runner import Readings, base_of
from ebca.bench.alignment.statistics import compare


def to_json(
    cells: Sequence[Cell], found: Readings, readers: Readers, keep_readings: bool = True
) -> list[dict[str, Any]]:
    """One entry per finished cell: its facts, shares, the paired comparison with the base, and every reading."""
    entries: list[dict[str, Any]] = []
    wanted: list[tuple[int, str, np.ndarray, np.ndarray]] = []
    for cell in cells:
        readings = found.get(key(cell.facts()))
        if readings is None:
            continue
        names = measures(cell.kind)
        entry: dict[str, Any] = {**cell.facts(), "shares": {m: float(vector(readings, m).mean()) for m in names}}
        base = base_of(cell, found)
        if base is not None and cell.method != BASE:
            entry["compared"] = {}
            wanted += [(len(entries), m, vector(base, m), vector(readings, m)) for m in names]
        if keep_readings:
            entry["readings"] = to_text(readings)
        entries.append(entry)
    compared = readers.map(compare, *zip(*((a, b) for _, _, a, b in wanted), strict=True)) if wanted else []
    for (at, measure, _, _), paired in zip(wanted, compared, strict=True):
        entries[at]["compared"][measure] = asdict(paired)
    return entries


def score(cells: Sequence[Cell], found: Readings) -> float | None:
    """The mean over cells of the share of correct images: exact, and with the relation. None if a cell is missing."""
    shares = [_correct(found.get(key(cell.facts()))) for cell in cells]
    return None if None in shares else float(np.mean([share for share in shares if share is not None]))


def _correct(readings: list[Reading] | None) -> float | None:
    return None if readings is None else float(vector(readings, "correct").mean())
