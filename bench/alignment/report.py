"""The alignment of several methods as tables and as a sheet of images."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ebca.bench.alignment.detector import OUTCOMES
from ebca.bench.alignment.effects import Effects
from ebca.bench.alignment.measure import Alignment
from ebca.bench.alignment.statistics import Paired, share_interval
from ebca.errors import ParameterError

_TITLES = {
    "all": "all present",
    "exact": "exact",
    "related": "relation holds",
    "miscolored": "things miscolored",
    "misshapen": "things misshapen",
    "neglected": "things neglected",
}
_SCALE = 2
_MARGIN = 6
_TEXT = 14


def print_report(alignment: Alignment, console: Console) -> None:
    """Print shares with intervals, and paired differences from the first method."""
    base, *others = alignment.methods
    table = Table(
        title=f"{alignment.settings.split} prompts, {alignment.settings.count} images of each kind and method"
    )
    for column in ("prompts", "measure", base.name):
        table.add_column(column)
    for other in others:
        table.add_column(other.name)
        table.add_column(f"{other.name} - {base.name} (95 %)", no_wrap=True)
        table.add_column("gained / lost")
        table.add_column("p (McNemar)")
    for kind in alignment.settings.kinds:
        for measure in alignment.measures(kind):
            shares = alignment.results[base.name][kind].vector(measure)
            row = [kind, _TITLES[measure], _share(shares, measure)]
            for other in others:
                paired = alignment.compared(other.name, kind, measure)
                difference, changed, p_value = difference_cells(paired)
                row += [f"{paired.other:.1%}", difference, changed, p_value if measure not in OUTCOMES else ""]
            table.add_row(*row, end_section=measure == alignment.measures(kind)[-1])
    console.print(table)


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


def difference_cells(paired: Paired) -> tuple[str, str, str]:
    """The difference with its interval in percentage points, gained / lost, McNemar's p."""
    return (
        f"{100 * paired.difference:+.1f} ({100 * paired.low:+.1f} to {100 * paired.high:+.1f})",
        f"{paired.gained} / {paired.lost}",
        f"{paired.p_value:.3f}",
    )


def write_sheet(sheet: Image.Image, file: Path) -> None:
    """Save a sheet of images. Raises ParameterError if the file cannot be written."""
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (OSError, ValueError) as error:
        raise ParameterError(f"cannot write '{file}': {error}", "name a .png file in a writable folder") from None


def _share(values: np.ndarray, measure: str) -> str:
    return f"{values.mean():.1%}" if measure in OUTCOMES else rate_cell(values)
