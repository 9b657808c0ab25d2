"""ebca-doctor: checks this machine and an engine directory, and names a remedy for every problem."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ebca import console
from ebca.engines.backends.registry import CPU_BACKENDS, GPU_BACKENDS
from ebca.engines.machine.cache_folder import cache_folder
from ebca.errors import ParameterError
from ebca.result_files import check_writable
from ebca.runtime.cli import options
from ebca.runtime.diagnostics import verify as verification
from ebca.runtime.diagnostics.directory import check_engine
from ebca.runtime.diagnostics.findings import Finding, size_text
from ebca.runtime.diagnostics.machine import check_environment, clear_cache

PROGRAM = "ebca-doctor"

_STANDARD_OUTPUT = Path("-")

_EXAMPLES = """examples:
  ebca-doctor
  ebca-doctor --engine engine-sd15
  ebca-doctor --engine engine-sd15 --backend onnxruntime --json
  ebca-doctor --engine engine-gpu --backend tensorrt-rtx --verify
  ebca-doctor --clear-cache
"""


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = console.Parser(
        PROGRAM,
        usage="%(prog)s [--engine DIR] [options]",
        description="Check this machine and, with --engine, an engine directory: the contents of every file, the\n"
        "device that ebca-run would choose, and one small UNet evaluation there. The exit code is 0 if there\n"
        f"are no problems, else 1.\n\n{_EXAMPLES}",
    )
    options.add_engine(p, required=False)
    p.add_argument(
        "--backend",
        choices=(*CPU_BACKENDS, *GPU_BACKENDS),
        help="backend to check and to run the engine with (default: what ebca-run would choose)",
    )
    p.add_argument(
        "--verify",
        action="store_true",
        help="also compare every part of the engine on --backend with onnxruntime on the CPU",
    )
    p.add_argument(
        "--json",
        nargs="?",
        type=console.path,
        const=_STANDARD_OUTPUT,
        metavar="FILE",
        help="write the findings as JSON: to FILE, or to standard output instead of the text",
    )
    p.add_argument(
        "--clear-cache",
        action="store_true",
        help="only delete all prepared engines in the cache; they are prepared again when needed",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted="interrupted; nothing was changed")


def _run(args: argparse.Namespace) -> int:
    if args.clear_cache:
        freed, count = clear_cache()
        engines = "prepared engine" if count == 1 else "prepared engines"
        print(f"freed {size_text(freed)}: {count} {engines} in '{cache_folder()}'")
        return 0
    as_text = args.json != _STANDARD_OUTPUT
    if args.json is not None and as_text:
        check_writable(args.json, "--json")
    out = Console(soft_wrap=True, highlight=False)
    found: list[Finding] = []

    def report(findings: Iterator[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            if as_text:
                _print(out, finding)

    if args.verify and (args.engine is None or args.backend in (None, verification.REFERENCE)):
        raise ParameterError(
            f"--verify needs --engine and a --backend other than {verification.REFERENCE}", "give both"
        )
    report(check_environment(args.backend))
    if args.engine is not None:
        report(check_engine(args.engine, args.backend, verify=args.verify))
    problems = sum(f.level == "problem" for f in found)
    if args.json is not None:
        data = {"ok": not problems, "engine": args.engine, "findings": [asdict(f) for f in found]}
        if as_text:
            console.write_json(args.json, data)
        else:
            print(json.dumps(data, indent=1))
    if as_text:
        out.print(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems")
    return 1 if problems else 0


def _print(out: Console, finding: Finding) -> None:
    style = {"ok": "green", "note": "yellow", "problem": "bold red"}[finding.level]
    line = Text.assemble((f"{finding.level:<8} ", style), (f"{finding.topic}: ", "bold"), finding.text)
    if finding.remedy:
        line.append(f"\n{'':<9}-> {finding.remedy}")
    out.print(line)


if __name__ == "__main__":
    sys.exit(main())
