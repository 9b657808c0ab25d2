"""The table that --dry-run prints."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ebca.export.graph.segments import Segment, Split
from ebca.export.plans.shapes import ROWS_PER_IMAGE


def print_split(split: Split, sizes: Mapping[str, int], scale: int, name: str) -> None:
    """Print a line per segment: what follows it, its weights, and what it reads and writes at these sizes.

    `scale`: pixels per latent, along each side.
    """
    images = sizes["batch"] // ROWS_PER_IMAGE
    height, width = (sizes[side] * scale for side in ("height", "width"))
    table = Table(title=f"{escape(name)}: {len(split.segments)} segments at {images} x {width}x{height}, with guidance")
    table.add_column("segment")
    table.add_column("layer after it")
    for heading in ("nodes", "weights MB", "tensors in", "in MB", "tensors out", "out MB"):
        table.add_column(heading, justify="right")
    for segment in split.segments:
        table.add_row(*_row(segment, split, sizes))
    nodes = sum(segment.nodes for segment in split.segments)
    weights = sum(segment.weight_bytes for segment in split.segments) / 1e6
    written = sum(_megabytes(split, segment.outputs, sizes) for segment in split.segments)
    table.add_section()
    table.add_row("all", "", str(nodes), f"{weights:.1f}", "", "", "", f"{written:.1f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _row(segment: Segment, split: Split, sizes: Mapping[str, int]) -> list[str]:
    return [
        segment.name,
        ", ".join(f"{op.layer} ({op.heads} heads)" for op in segment.ops) or "-",
        str(segment.nodes),
        f"{segment.weight_bytes / 1e6:.1f}",
        str(len(segment.inputs)),
        f"{_megabytes(split, segment.inputs, sizes):.1f}",
        str(len(segment.outputs)),
        f"{_megabytes(split, segment.outputs, sizes):.1f}",
    ]


def _megabytes(split: Split, names: tuple[str, ...], sizes: Mapping[str, int]) -> float:
    return sum(split.tensors[name].nbytes(sizes) for name in names) / 1e6
