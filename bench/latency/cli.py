"""ebca-bench latency: how fast an engine is on this machine, stage by stage, alone and against others."""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from ebca import console
from ebca.bench import options
from ebca.bench.latency.compare import ROWS, USUAL, parse_rows
from ebca.bench.latency.measure import Settings, measure
from ebca.bench.latency.report import print_report, to_json
from ebca.runtime.cli.options import add_machine, tell_device

PROGRAM = "ebca-bench"

_DESCRIPTION = """\
Measure every stage of an engine: median and 90th percentile. Results are checked first, and a wrong one ends the run.
UNet steps take turns round by round, so a machine that slows down slows all rows alike.

Other benchmarks, each with its own --help:
  ebca-bench startup      import time, and the time of a complete ebca-run
  ebca-bench alignment    whether images follow their prompts
  ebca-bench tasks        whether edits and inpainting come out as asked
"""

_EXAMPLES = """examples:
  ebca-bench --engine engine-sd15
  ebca-bench --engine engine-sd15 --backend openvino --precision bf16 --json result.json
  ebca-bench --engine engine-sd15 --compare --model sd-1.5
  ebca-bench --engine engine-sd15-gpu --device cuda --segments --compare --model sd-1.5
  ebca-bench --engine engine-tiny --compare-with one_piece --model tiny --repeats 20

A comparison with all rows at SD 1.5 size needs 12 GB of memory with onnxruntime and 22 GB with openvino. The row
one_piece (the full UNet as one graph) also needs 8 GB in the folder for temporary files (TMPDIR) while it is built.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, _DESCRIPTION, _EXAMPLES)
    options.add_engine(p)
    options.add_json(p)
    add_machine(p, threads="for the engine and PyTorch (default: one per physical core)")

    work = p.add_argument_group("work")
    for side in ("height", "width"):
        work.add_argument(f"--{side}", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's)")
    options.add_batch_size(work, 1, "; the UNet has two rows for each")
    work.add_argument(
        "--steps", type=int, default=50, help="scheduler steps that the total is extrapolated to (default: 50)"
    )
    for term, value in (("attn", 0.01), ("norm", 0.02)):
        work.add_argument(
            f"--gamma-{term}", type=float, default=value, metavar="G", help=f"of the EBCU step (default: {value})"
        )
    work.add_argument("--warmup", type=int, default=2, metavar="N", help="rounds before measuring (default: 2)")
    options.add_repeats(work, 10)
    work.add_argument("--segments", action="store_true", help="also time every segment and op on its own")

    compare = p.add_argument_group("comparison")
    compare.add_argument("--compare", action="store_true", help=f"time {', '.join(USUAL)} in the same rounds")
    compare.add_argument(
        "--compare-with",
        type=parse_rows,
        metavar="ROWS",
        help=f"time these rows, separated by commas: {', '.join(ROWS)}",
    )
    compare.add_argument(
        "--model",
        type=console.name_or_path,
        help="the checkpoint the engine was made from, as for `ebca-export --model`",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=options.INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    options.check_results(args)
    rows = args.compare_with if args.compare_with is not None else (USUAL if args.compare else ())
    given = {field.name: getattr(args, field.name) for field in fields(Settings) if field.name != "compare"}
    settings = Settings(**given, compare=rows)
    with console.PrepareProgress() as prepare, console.ProgressLine() as line:
        report = measure(
            settings,
            on_prepare=prepare,
            on_device=tell_device(args),
            on_round=lambda done, total: line.update(f"round {min(done + 1, total)} of {total}", done, total),
        )
    print_report(report, options.output(140))
    if args.json is not None:
        console.write_json(args.json, to_json(report))
    return 0
