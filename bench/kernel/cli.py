"""The GPU kernels against PyTorch, layer by layer: `python -m ebca.bench.kernel --json FILE`. Needs a GPU and PyTorch.

`--tune` tries block sizes on this GPU and writes the fastest to tuning.json; `make kernels` then compiles them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ebca import console
from ebca.bench import options
from ebca.bench.kernel.layers import LAYERS
from ebca.bench.kernel.measure import load_torch, measure, peaks
from ebca.bench.kernel.tune import tune
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape
from ebca.plugins.kernels.binaries import DTYPES
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary
from ebca.result_files import check_writable

PROGRAM = "python -m ebca.bench.kernel"


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = options.command_line(PROGRAM, "Time the GPU kernels against PyTorch, layer by layer.")
    options.add_json(p)
    p.add_argument("--model", choices=LAYERS, action="append", help="layers of which models (default: all)")
    p.add_argument("--dtype", choices=DTYPES, default="float16", help="storage type (default: float16)")
    options.add_batch_size(p, 1, "; the kernels get two rows for each")
    options.add_repeats(p, 30)
    p.add_argument("--device", type=int, default=0, metavar="INDEX", help="which GPU (default: 0)")
    p.add_argument(
        "--tune",
        type=console.path,
        metavar="FILE",
        nargs="?",
        const=ahead.TUNING,
        help="find the fastest block sizes and write them to this file (default: the package's tuning.json)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _run(parser().parse_args(argv)), interrupted=options.INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    options.check_results(args)
    if args.tune is not None:
        check_writable(args.tune, "--tune")
    with CudaLauncher(args.device) as launcher:
        torch = load_torch(args.device)
        if args.tune is not None:
            tuning = json.loads(ahead.TUNING.read_text(encoding="utf-8"))
            tuning[ahead.text(launcher.capability)] = tune(torch, launcher, args.dtype, args.repeats)
            console.write_text(args.tune, json.dumps(tuning, indent=2) + "\n")
            print(f"wrote {args.tune}; run `make kernels`")
            return 0
        report = _measure(torch, launcher, args)
    if args.json is not None:
        console.write_json(args.json, report)
    return 0


def _measure(torch: Any, launcher: CudaLauncher, args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print layer by layer; returns the contents of `--json FILE`."""
    library = EnergyAttention(KernelLibrary(launcher))
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(args.device),
        "capability": ahead.text(launcher.capability),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "dtype": args.dtype,
        "peak": peaks(torch, args.dtype),
        "layers": [],
    }
    print(f"{report['device']}, {args.dtype}; peak {_rates(report['peak'])} (PyTorch's copy and matrix product)")
    for model in args.model or LAYERS:
        for heads, head_dim, positions in LAYERS[model]:
            shape = OpShape(2 * args.batch_size, positions, 1, 77, heads, head_dim)
            rows = {row.name: row.as_json() for row in measure(torch, library, args.dtype, shape, args.repeats)}
            report["layers"].append({"model": model, **vars(shape), "contenders": rows})
            print(f"{model}: {positions} positions, {heads} heads of {head_dim}")
            for name, row in rows.items():
                print(f"  {name:10} {row['p50_us']:8.1f} us  {_rates(row)}")
    return report


def _rates(row: Mapping[str, float]) -> str:
    return f"{row['gb_per_s']:.0f} GB/s, {row['tflop_per_s']:.1f} TFLOP/s"
