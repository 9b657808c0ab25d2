"""Cells as a table on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ebca.bench.alignment.journal import key
from ebca.bench.alignment.readings import vector
from ebca.bench.alignment.report import rate_cell
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE, shown
from ebca.bench.alignment.rivals.runner import Readings, base_of
from ebca.bench.alignment.statistics import compare
from ebca.bench.alignment.tables import difference_cells


def print_cells(title: str, cells: Sequence[Cell], found: Readings, console: Console) -> None:
    """Shares with their 95 % intervals, and the paired difference of correct images from the base."""
    table = Table(title=title)
    for column in ("prompts", "sampling", "method", "settings", "n", "all present", "correct"):
        table.add_column(column)
    for column in ("correct - base (95 %)", "gained / lost", "p (McNemar)"):
        table.add_column(column, no_wrap=True)
    for cell in cells:
        readings = found.get(key(cell.facts()))
        if readings is None:
            continue
        settings = "" if cell.method == BASE else shown(cell.settings)
        row = [cell.kind, str(cell.sampling), cell.method, settings, str(len(readings))]
        row += [rate_cell(vector(readings, measure)) for measure in ("all", "correct")]
        base = base_of(cell, found)
        if base is not None:
            row += difference_cells(compare(vector(base, "correct"), vector(readings, "correct")))
        table.add_row(*row)
    console.print(table)
