"""ebca-bench: how fast an engine is here, stage by stage, and against PyTorch and an uncut UNet."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from rich.console import Console

from ebca import console
from ebca.bench.compare import ROWS, USUAL
from ebca.bench.latency import Settings, measure
from ebca.bench.report import print_report, to_json
from ebca.errors import EbcaError
from ebca.runtime.cli.options import add_machine

PROGRAM = "ebca-bench"

_EXAMPLES = """examples:
  ebca-bench --engine engine-sd15
  ebca-bench --engine engine-sd15 --backend openvino --precision bf16 --json result.json
  ebca-bench --engine engine-sd15 --compare --model sd-1.5
  ebca-bench --engine engine-sd15-gpu --device cuda --segments --compare --model sd-1.5
  ebca-bench --engine engine-tiny --compare-with one_piece --model tiny --repeats 20

A comparison of all rows at SD 1.5 size needs 12 GB of memory with onnxruntime, 22 GB with openvino; one_piece also
needs 8 GB in the folder for temporary files (TMPDIR) while it is made.
"""


def parser() -> argparse.ArgumentParser:
    """The command line of the latency benchmark, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Measure every stage of an engine: median and 90th percentile. Results are checked first; a wrong\n"
        "one ends the run. UNet steps take turns round by round, so a machine that slows down slows all rows alike.\n"
        "Other benchmarks: `ebca-bench alignment --help`, whether pictures follow their prompts; `ebca-bench tasks\n"
        "--help`, whether edits and fillings come out as asked for.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--engine",
        required=True,
        metavar="DIR",
        help="engine directory made by ebca-export, or a bundled name",
    )
    p.add_argument("--json", metavar="FILE", help="also write the results there")

    add_machine(p, threads="for the engine and PyTorch (default: one per physical core)")

    work = p.add_argument_group("work")
    work.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's)")
    work.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's)")
    work.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="pictures; the UNet has twice the rows (default: 1)",
    )
    work.add_argument(
        "--steps",
        type=int,
        default=50,
        help="scheduler steps of the total, which is extrapolated (default: 50)",
    )
    work.add_argument("--gamma-attn", type=float, default=0.01, metavar="G", help="of the EBCU step (default: 0.01)")
    work.add_argument("--gamma-norm", type=float, default=0.02, metavar="G", help="of the EBCU step (default: 0.02)")
    work.add_argument("--warmup", type=int, default=2, metavar="N", help="rounds that do not count (default: 2)")
    work.add_argument("--repeats", type=int, default=10, metavar="N", help="rounds that count (default: 10)")

    work.add_argument("--segments", action="store_true", help="time every segment and op by itself too")

    compare = p.add_argument_group("comparison")
    compare.add_argument("--compare", action="store_true", help=f"time {', '.join(USUAL)} in the same rounds")
    compare.add_argument(
        "--compare-with",
        type=_names,
        metavar="ROWS",
        help=f"time these, separated by commas: {', '.join(ROWS)}",
    )
    compare.add_argument("--model", help="the checkpoint the engine was made from, as for `ebca-export --model`")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. The first word may name a benchmark; else it is the latency."""
    words = list(sys.argv[1:] if argv is None else argv)
    benchmark = _BENCHMARKS.get(words[0]) if words else None
    return benchmark(words[1:]) if benchmark else latency(words)


def latency(argv: Sequence[str]) -> int:
    """`ebca-bench [latency] --engine DIR ...`"""
    args = parser().parse_args(argv)
    return console.run(PROGRAM, lambda: _latency(args), interrupted="interrupted; nothing was written")


def _latency(args: argparse.Namespace) -> int:
    rows = args.compare_with if args.compare_with is not None else (USUAL if args.compare else ())
    settings = Settings(
        engine=args.engine,
        device=args.device,
        backend=args.backend,
        precision=args.precision,
        threads=args.threads,
        height=args.height,
        width=args.width,
        batch_size=args.batch_size,
        steps=args.steps,
        warmup=args.warmup,
        repeats=args.repeats,
        gamma_attn=args.gamma_attn,
        gamma_norm=args.gamma_norm,
        segments=args.segments,
        compare=rows,
        model=args.model,
    )
    with console.PrepareProgress() as prepare, console.ProgressLine() as line:
        report = measure(
            settings,
            on_prepare=prepare,
            on_round=lambda done, total: line.update(f"round {min(done + 1, total)} of {total}", done, total),
        )
    print_report(report, Console(width=None if sys.stdout.isatty() else 140))
    if args.json:
        console.write_json(args.json, to_json(report))
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def _reading(module: str) -> Callable[[Sequence[str]], int]:
    """A benchmark that reads pictures; its command line is imported when it is asked for."""

    def benchmark(argv: Sequence[str]) -> int:
        def body() -> int:
            # Not needed to measure latency, so it is not among what ebca always installs.
            if find_spec("scipy") is None:
                raise EbcaError(
                    "reading pictures needs scipy", 'run `pip install scipy`, or `pip install "ebca[bench]"`'
                )
            main: Callable[[Sequence[str]], int] = import_module(module).main
            return main(argv)

        return console.run(PROGRAM, body)

    return benchmark


_BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {
    "latency": latency,
    "alignment": _reading("ebca.bench.alignment.cli"),
    "tasks": _reading("ebca.bench.tasks.cli"),
}

if __name__ == "__main__":
    sys.exit(main())
