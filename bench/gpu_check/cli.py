"""Everything that needs an NVIDIA GPU, part by part, the most important first: `bench/gpu_check.sh`.

Each part runs in a process of its own, with a time limit, and writes DIR/PART.json when it ends; DIR/summary.json has
all of them. Every part runs even if earlier parts failed. The same command continues after an interruption: parts
that have a result are not run again.

Engine directories come from the folder of --engines: tiny, tiny-xl, shapes and model, each as a directory or packed
(tiny.tar.xz). --export makes those that are missing.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ebca import console
from ebca.bench import options
from ebca.bench.gpu_check import worker
from ebca.bench.gpu_check.facts import facts
from ebca.bench.gpu_check.packed.archive import SUFFIX, pack, unpack
from ebca.bench.gpu_check.results import ENDED, FAILED
from ebca.bench.gpu_check.runner import SUMMARY, Runner
from ebca.bench.gpu_check.table import ENGINES, PARTS, TOTAL_SECONDS
from ebca.bench.gpu_check.visit import DEFAULT_MODEL, Visit
from ebca.errors import ParameterError

PROGRAM = "gpu_check"

_EXAMPLES = f"""examples:
  bench/gpu_check.sh                                        # exports what it needs; results in gpu_check/
  python -m ebca.bench.gpu_check --engines DIR --limit 400  # nothing is exported
  python -m ebca.bench.gpu_check --engines DIR --only steps --again steps
  python -m ebca.bench.gpu_check pack --engine engine-gpu --output DIR/model{SUFFIX}
  python -m ebca.bench.gpu_check unpack DIR/model{SUFFIX} --output engine-gpu
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if no part failed or ran into its limit."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands: Mapping[str, Callable[[Sequence[str]], int]] = {"part": worker.main, "pack": _pack, "unpack": _unpack}
    chosen = commands[words.pop(0)] if words and words[0] in commands else _check
    return console.run(PROGRAM, lambda: chosen(words), interrupted="interrupted; the same command continues")


def _check(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    names = [part.name for part in PARTS]
    for name in (*args.only, *args.again):
        if name not in names:
            raise ParameterError(f"there is no part '{name}'", f"choose from {', '.join(names)}")
    if args.list:
        for part in PARTS:
            print(f"{part.name:14}{part.limit:4} s  {part.what}")
        return 0
    if args.engines is not None and not args.engines.is_dir():
        raise ParameterError(f"--engines names '{args.engines}', which is no folder", "put engine directories into one")
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    made = args.export or (args.output / "engines").is_dir()
    if args.engines is None and not made and any(part.engines for part in parts):
        raise ParameterError("there are no engine directories", "name their folder with --engines, or pass --export")
    known = facts()
    visit = Visit(
        output=args.output.absolute(),
        engines=None if args.engines is None else args.engines.absolute(),
        export=args.export,
        model=args.model,
        capability=known["gpu"]["compute_capability"],
        patience=args.patience,
    )
    summary = Runner(visit, known, args.limit, lambda text: print(text, flush=True)).check(parts, args.again)
    for name, value in summary["targets"].items():
        print(f"{name:44} {value['value']:8.3f}  target {value['target']:g}{'' if value['met'] else '  NOT MET'}")
    chosen = {ENGINES.name, *(part.name for part in parts)}
    wrong = [name for name, r in summary["parts"].items() if name in chosen and r["status"] in (FAILED, ENDED)]
    left = [part.name for part in parts if part.name not in summary["parts"]]
    print(f"wrote {args.output / SUMMARY} after {summary['seconds']:.0f} s", end="")
    print(f"; failed or ended: {', '.join(wrong)}" if wrong else "", end="")
    print(f"; not run: {', '.join(left)}" if left else "")
    return 1 if wrong or left else 0


def _parser() -> argparse.ArgumentParser:
    p = options.command_line(PROGRAM, __doc__ or "", _EXAMPLES)
    p.add_argument("--engines", type=console.path, metavar="DIR", help="folder of engine directories, packed or not")
    p.add_argument("--export", action="store_true", help="export the engine directories that are missing")
    p.add_argument(
        "--model",
        help="checkpoint to export and to compare with (default: what the directory was exported from, "
        f"or {DEFAULT_MODEL})",
    )
    p.add_argument(
        "--output", type=console.path, default=Path("gpu_check"), metavar="DIR", help="results (default: gpu_check)"
    )
    p.add_argument("--only", nargs="+", default=[], metavar="PART", help="run only these parts")
    p.add_argument("--again", nargs="+", default=[], metavar="PART", help="run these parts even if they have a result")
    p.add_argument(
        "--limit", type=float, metavar="SECONDS", help=f"end after this long (the parts' own limits: {TOTAL_SECONDS})"
    )
    p.add_argument(
        "--patience", type=float, default=1.0, metavar="FACTOR", help="multiply the limits of the parts (default: 1)"
    )
    p.add_argument("--list", action="store_true", help="list the parts and their limits")
    return p


def _pack(argv: Sequence[str]) -> int:
    p = options.command_line(f"{PROGRAM} pack", "Pack an engine directory without weights that can be made again.")
    options.add_engine(p)
    p.add_argument("--output", type=console.path, required=True, metavar=f"FILE{SUFFIX}", help="file to write")
    args = p.parse_args(argv)
    made = pack(args.engine, args.output)
    print(
        f"wrote {args.output}, {made.archive / 1e6:.1f} MB: holds {made.held / 1e6:.1f} MB of weights, "
        f"{made.made / 1e6:.1f} MB are made again"
    )
    return 0


def _unpack(argv: Sequence[str]) -> int:
    p = options.command_line(
        f"{PROGRAM} unpack", "Make the engine directory that was packed, bit for bit.", takes_words=True
    )
    p.add_argument("file", type=console.path, metavar=f"FILE{SUFFIX}", help="what `pack` wrote")
    p.add_argument("--output", type=console.path, required=True, metavar="DIR", help="engine directory to make")
    args = p.parse_args(argv)
    print(f"wrote {unpack(args.file, args.output)}")
    return 0
