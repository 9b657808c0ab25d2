"""Command-line options of everything that runs cells, and what they open."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebca import console
from ebca.bench.alignment.detector import Reading
from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.readings import vector
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.model import DEFAULT, Model
from ebca.bench.alignment.rivals.readers import Readers
from ebca.bench.alignment.rivals.runner import Runner, allow_fast_products
from ebca.errors import ParameterError


def add_runner(p: argparse.ArgumentParser) -> None:
    """`--model`, `--device`, `--batch-size`, `--workers`, `--limit`."""
    p.add_argument(
        "--model", type=console.path, default=DEFAULT, metavar="DIR", help="pipeline folder made by examples/shapes"
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu); cuda computes products in TF32")
    p.add_argument("--batch-size", type=int, default=512, metavar="N", help="images at once (default: 512)")
    p.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: one per core but one)"
    )
    p.add_argument(
        "--limit", type=float, default=float("inf"), metavar="SECONDS", help="begin nothing new after this time"
    )


@contextmanager
def opened_runner(args: argparse.Namespace, journal: Path | None) -> Iterator[Runner]:
    """A runner that prints a line per finished cell."""
    import torch

    began = time.monotonic()
    if args.batch_size < 1:
        raise ParameterError(f"--batch-size is {args.batch_size}", "give 1 or more")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ParameterError(f"--device is {args.device}, but PyTorch finds no GPU", "use --device cpu")
    allow_fast_products(args.device)

    def tell(cell: Cell, readings: list[Reading], seconds: float) -> None:
        shares = ", ".join(f"{name} {100 * vector(readings, name).mean():.1f}" for name in ("all", "correct"))
        print(f"{time.monotonic() - began:6.1f} s  {cell}: {shares} ({seconds:.2f} s)", flush=True)

    with Readers(args.workers) as readers:
        model = Model(args.model, args.device)
        yield Runner(model, readers, Journal(journal), batch=args.batch_size, until=began + args.limit, on_cell=tell)
