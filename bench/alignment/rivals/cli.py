"""python -m ebca.bench.alignment.rivals: try settings of each method on development prompts, or compare methods."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.prompts import KINDS, SPLITS
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.methods import BASE, METHODS, guide, shown
from ebca.bench.alignment.rivals.options import add_runner, opened_runner
from ebca.bench.alignment.rivals.results import to_json
from ebca.bench.alignment.rivals.sampler import SCHEDULERS, Sampling
from ebca.bench.alignment.rivals.search import best, search_cells
from ebca.bench.alignment.rivals.table import print_cells
from ebca.errors import ParameterError

PROGRAM = "ebca.bench.alignment.rivals"

_DESCRIPTION = """\
Make images of coloured shapes with several methods in PyTorch, from the same prompts and initial noise, and read them
back. Settings are tried on development prompts only.
"""

_EXAMPLES = """examples:
  python -m ebca.bench.alignment.rivals --split development --settings grid
  python -m ebca.bench.alignment.rivals --methods exclusive attend-and-excite --kinds three --json rivals.json
  python -m ebca.bench.alignment.rivals --methods exclusive --settings '{"exclusive": {"away": 2, "end": 0.5}}'
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_cases(p, SPLITS, "image", "images of each kind, method and setting")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                   help=f"{', '.join(METHODS)} (default: all); they are compared with base")  # fmt: skip
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=["two", "three"], metavar="KIND",
                   help=f"kinds of prompts: {', '.join(KINDS)} (default: two three)")  # fmt: skip
    p.add_argument("--settings", default="default", metavar="WHICH",
                   help="default; grid, which tries many and names the best; or JSON by method")  # fmt: skip
    p.add_argument("--scheduler", choices=SCHEDULERS, default="ddim", help="default: ddim")
    p.add_argument("--steps", type=int, default=25, help="scheduler steps (default: 25)")
    p.add_argument("--guidance-scale", type=float, default=4.0, metavar="G", help="default: 4")
    options.add_json(p, "shares, differences and every reading")
    add_runner(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=options.INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    options.check_results(args)
    if args.settings == "grid" and args.split != "development":
        raise ParameterError("a grid of settings is tried on held-out prompts", "use --split development")
    if args.count < 1:
        raise ParameterError(f"--count is {args.count}", "give 1 or more")
    cells = _cells(args)
    with opened_runner(args, None) as runner:
        found = runner.run(cells)
        entries = to_json(cells, found, runner.readers)
    print_cells(f"{args.split} prompts", cells, found, options.output(200))
    if args.settings == "grid":
        for method in args.methods:
            chosen = best(cells, found, method)
            if method != BASE and chosen is not None:
                print(f"best of {method}: {shown(chosen)}")
    if args.json is not None:
        console.write_json(args.json, {"cells": entries})
    return 0


def _cells(args: argparse.Namespace) -> list[Cell]:
    sampling = Sampling(args.scheduler, args.steps, args.guidance_scale)
    methods = [method for method in args.methods if method != BASE]
    if args.settings == "grid":
        cells = search_cells(BASE, args.kinds, args.count, sampling)
        for method in methods:
            cells += [cell for cell in search_cells(method, args.kinds, args.count, sampling) if cell.method == method]
        return cells
    settings = {} if args.settings == "default" else _parsed(args.settings)
    for method in methods:
        guide(method, settings.get(method, {}))
    return [
        Cell(method, kind, args.split, args.count, args.seed, sampling, settings.get(method, {}))
        for kind in args.kinds
        for method in (BASE, *methods)
    ]


def _parsed(text: str) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"--settings is not JSON: {error}", "give default, grid, or JSON by method") from None
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise ParameterError(f"--settings is {text}", 'give settings by method, such as {"exclusive": {"away": 2}}')
    return found
