"""Command-line options that several benchmarks share, in addition to those of `ebca.runtime.cli.options`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from ebca import console
from ebca.runtime.cli import options
from ebca.runtime.engine import Engine
from ebca.runtime.images.files import check_suffix

INTERRUPTED = "interrupted; nothing was written"


def command_line(
    program: str, description: str, epilog: str | None = None, *, takes_words: bool = False
) -> argparse.ArgumentParser:
    """A parser that prints its description and examples as they are.

    Args:
        program, description, epilog: as for `argparse.ArgumentParser`.
        takes_words: it has arguments beside options.
    """
    return console.Parser(
        program,
        libraries=("onnxruntime", "openvino", "torch", "diffusers", "numpy"),
        usage=None if takes_words else "%(prog)s [options]",
        description=description,
        epilog=epilog,
    )


def add_engine(p: argparse.ArgumentParser, default: str | None = None) -> None:
    """`--engine`, required if there is no default."""
    note = f" (default: {default})" if default else ""
    p.add_argument(
        "--engine",
        required=default is None,
        default=default,
        type=console.name_or_path,
        metavar="DIR",
        help=f"engine directory made by ebca-export, or the name of a bundled one{note}",
    )


def add_json(p: argparse.ArgumentParser, what: str = "the results") -> None:
    """`--json`."""
    p.add_argument("--json", type=console.path, metavar="FILE", help=f"also write {what} to this file")


def add_repeats(p: "argparse.ArgumentParser | argparse._ArgumentGroup", default: int) -> None:
    """`--repeats`."""
    p.add_argument(
        "--repeats", type=int, default=default, metavar="N", help=f"rounds that are measured (default: {default})"
    )


def add_batch_size(p: "argparse.ArgumentParser | argparse._ArgumentGroup", default: int, note: str = "") -> None:
    """`--batch-size`."""
    p.add_argument(
        "--batch-size", type=int, default=default, metavar="N", help=f"images per call{note} (default: {default})"
    )


def add_cases(p: argparse.ArgumentParser, splits: Sequence[str], what: str, count_help: str) -> None:
    """Which cases a quality benchmark takes: `--split`, `--count`, `--seed`."""
    p.add_argument("--split", choices=splits, default="held-out", help="which half of the prompts (default: held-out)")
    p.add_argument("--count", type=int, default=100, metavar="N", help=f"{count_help} (default: 100)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help=f"seed of the first {what}; the next has N + 1 (default: 0)"
    )


def add_grid(p: argparse.ArgumentParser, shows: str, row: str) -> None:
    """`--grid` and `--grid-rows`."""
    p.add_argument("--grid", type=console.path, metavar="FILE.png", help=f"also write a sheet of images: {shows}")
    p.add_argument(
        "--grid-rows", type=int, default=4, metavar="N", help=f"{row} of each kind in the sheet (default: 4)"
    )


def check_results(args: argparse.Namespace) -> None:
    """Check now that the files of `--json` and `--grid` can be written. Raises ParameterError."""
    named = {"--json": args.json, "--grid": getattr(args, "grid", None)}
    console.check_results([(flag, file) for flag, file in named.items() if file is not None])
    if named["--grid"] is not None:
        check_suffix(named["--grid"], "--grid")


@contextmanager
def opened_engine(args: argparse.Namespace) -> Iterator[tuple[Engine, console.ProgressLine]]:
    """The engine of a quality benchmark, and a line for its progress; checks first that the results can be written."""
    check_results(args)
    with (
        console.PrepareProgress() as prepare,
        console.ProgressLine() as line,
        options.open_engine(args, prepare) as engine,
    ):
        yield engine, line


def output(width: int) -> Console:
    """Where tables are printed: as wide as the terminal, or `width` columns in a pipe or a file."""
    return Console(width=None if sys.stdout.isatty() else width)
