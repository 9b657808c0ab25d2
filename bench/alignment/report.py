"""The alignment of several methods as tables and as a sheet of images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ebca.bench.alignment.effects import Effects
from ebca.bench.alignment.measure import Alignment
from ebca.bench.alignment.statistics import share_interval
from ebca.bench.alignment.tables import COLUMNS, TITLES, rows
from ebca.errors import ParameterError

_SCALE = 2
_MARGIN = 6
_TEXT = 14


def print_report(report: Mapping[str, Any], title: str, console: Console) -> None:
    """Print shares with intervals, and paired differences from the base, of what `tables.rows` reads."""
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column != "method")
    found = rows(report)
    for row, following in zip(found, [*found[1:], None], strict=True):
        ends = following is None or (row.kind, row.sampling) != (following.kind, following.sampling)
        table.add_row(*row.cells(), end_section=ends)
    console.print(table)


def markdown(report: Mapping[str, Any], measures: Sequence[str] = tuple(TITLES)) -> str:
    """The same rows as a table in Markdown, those of some measures only."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    lines += [row.cells() for row in rows(report) if row.measure in measures]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def print_effects(effects: Mapping[str, Mapping[str, Effects]], console: Console) -> None:
    """Print how far each method moves the contexts, and the energies of each layer."""
    table = Table(title="context update: means over one batch and all steps, conditional rows")
    for column in ("prompts", "method", "contexts moved", "attention energy by layer", "norm energy"):
        table.add_column(column, no_wrap=True)
    for kind, by_method in effects.items():
        for method, found in by_method.items():
            energies = (" ".join(f"{value:.3g}" for value in term) for term in (found.attention, found.norm))
            table.add_row(kind, method, f"{found.context_change:.2%}", *energies)
    console.print(table)


def effects_json(effects: Mapping[str, Mapping[str, Effects]]) -> dict[str, Any]:
    """By kind and method: context_change, and attention and norm per layer."""
    return {kind: {name: asdict(found) for name, found in methods.items()} for kind, methods in effects.items()}


def save_grid(alignment: Alignment, file: Path) -> None:
    """Write a sheet with one row per kept image and one column per method, below its prompt.

    Raises:
        ParameterError: the file cannot be written.
    """
    first = alignment.methods[0].name
    rows = [
        (kind, index, scene.caption())
        for kind in alignment.settings.kinds
        for index, scene in enumerate(alignment.results[first][kind].scenes[: _kept(alignment, kind)])
    ]
    if not rows:
        raise ParameterError("no images were kept for the grid")
    height, width = (side * _SCALE for side in _image(alignment, first, *rows[0][:2]).shape[:2])
    cell = (max(len(alignment.methods) * (width + _MARGIN), 300), height + _TEXT + 2 * _MARGIN)
    columns = 1 if len(rows) < 4 else 2
    per_column = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (cell[0] + _MARGIN) + _MARGIN, per_column * cell[1] + _TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (kind, index, caption) in enumerate(rows):
        x, y = _MARGIN + number // per_column * (cell[0] + _MARGIN), _TEXT + number % per_column * cell[1]
        pen.text((x, y), caption, fill="black", font=font)
        for place, method in enumerate(alignment.methods):
            at = (x + place * (width + _MARGIN), y + _TEXT + 2)
            image = Image.fromarray(_image(alignment, method.name, kind, index))
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), at)
            if number % per_column == 0:
                pen.text((at[0], 1), method.name, fill="gray", font=font)
    write_sheet(sheet, file)


def _image(alignment: Alignment, method: str, kind: str, index: int) -> np.ndarray:
    return alignment.results[method][kind].images[index]


def _kept(alignment: Alignment, kind: str) -> int:
    return len(alignment.results[alignment.methods[0].name][kind].images)


def rate_cell(successes: np.ndarray) -> str:
    """A share of successes [n] with its 95 % interval, in percent."""
    low, high = share_interval(successes)
    return f"{successes.mean():.1%} ({100 * low:.1f} to {100 * high:.1f})"


def write_sheet(sheet: Image.Image, file: Path) -> None:
    """Save a sheet of images. Raises ParameterError if the file cannot be written."""
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (OSError, ValueError) as error:
        raise ParameterError(f"cannot write '{file}': {error}", "name a .png file in a writable folder") from None
