"""Counts failures over many runs of one kind."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ebca import console
from ebca.bench.reliability.table import CHECKS, Check, Options
from ebca.engines.backends.registry import CPU_BACKENDS

PROGRAM = "reliability"

_EXAMPLES = """examples:
  python -m ebca.bench.reliability kills --count 200 --output kills.json
  python -m ebca.bench.reliability all --output reliability.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if nothing failed."""
    args = _parser().parse_args(argv)
    return console.run(PROGRAM, lambda: _run(args), interrupted="interrupted; nothing is left behind")


def _run(args: argparse.Namespace) -> int:
    reports = []
    for check in CHECKS:
        if args.check in ("all", check.name):
            reports.append(_report(check, args))
            failures = reports[-1]["failures"]
            print(f"{check.name}: {len(failures)} failures of {reports[-1]['count']}, {reports[-1]['seconds']:.0f} s")
            for line in failures[:10]:
                print(f"  {line}")
    if args.output:
        console.write_json(args.output, {"checks": reports})
    return 1 if any(report["failures"] for report in reports) else 0


def _report(check: Check, args: argparse.Namespace) -> dict[str, Any]:
    count = check.count if args.count is None else args.count
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ebca-reliability-", ignore_cleanup_errors=True) as folder:
        found = check.run(Options(args.engine, args.backend, count, args.seed, Path(folder)))
    head = {"check": check.name, "count": count, "engine": args.engine, "backend": args.backend, "seed": args.seed}
    return {**head, "seconds": round(time.perf_counter() - began, 1), **found}


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {check.name:12} {check.what} (default count: {check.count})" for check in CHECKS)
    p = argparse.ArgumentParser(
        PROGRAM,
        description=__doc__,
        epilog=f"checks:\n{listed}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("check", choices=("all", *(check.name for check in CHECKS)), metavar="CHECK", help="see below")
    p.add_argument("--count", type=_count, metavar="N", help="how often (default: see below)")
    p.add_argument("--engine", default="shapes", metavar="DIR", help="engine directory, or bundled name")
    p.add_argument("--backend", choices=CPU_BACKENDS, default="onnxruntime", help="(default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of random moments and images (default: 0)")
    p.add_argument("--output", type=Path, metavar="FILE.json", help="write the report as JSON")
    return p


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# Shown in argparse's message: "invalid count value".
_count.__name__ = "count"
