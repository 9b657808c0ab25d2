"""Everything that needs an NVIDIA GPU, in one run with one result: `bench/gpu_check.sh`.

Every part runs even if earlier parts failed. The result of a part that failed is the end of what it printed.
"""

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ebca
from ebca import console
from ebca.bench import options
from ebca.bench.gpu_check.commands import TAIL
from ebca.bench.gpu_check.parts import parts
from ebca.engines.machine import nvidia
from ebca.errors import BackendError

PROGRAM = "gpu_check"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if every part passed."""
    parser = options.command_line(PROGRAM, __doc__)
    parser.add_argument("--model", default="sd-1.5", help="checkpoint for the latency parts (default: sd-1.5)")
    parser.add_argument(
        "--json", type=Path, default=Path("gpu_check.json"), metavar="FILE", help="result (default: gpu_check.json)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run the parts whose names begin so")
    args = parser.parse_args(argv)

    def body() -> int:
        report = check(args.model, args.json, args.only)
        failed = [name for name, part in report["parts"].items() if not part["ok"]]
        print(f"wrote {args.json}; " + (f"failed: {', '.join(failed)}" if failed else "all parts passed"))
        return 1 if failed else 0

    return console.run(PROGRAM, body, interrupted="interrupted; the parts that ran are in the result")


def check(model: str, out: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the parts and write the result after each.

    Args:
        model: checkpoint for the latency parts.
        out: file for the result.
        only: beginnings of the names of parts to run; all parts when empty.

    Raises:
        BackendError: there is no GPU, or its driver does not work.
    """
    gpus = nvidia.find().gpus
    if not gpus:
        raise BackendError("the NVIDIA driver finds no GPU", "see `nvidia-smi`")
    gpu = gpus[0]
    report: dict[str, Any] = {
        "gpu": gpu.__dict__,
        "ebca": ebca.__version__,
        "python": platform.python_version(),
        "model": model,
        "parts": {},
    }
    with tempfile.TemporaryDirectory(prefix="ebca-gpu-") as work:
        for part in parts(model, Path(work), gpu.compute_capability):
            if only and not part.name.startswith(tuple(only)):
                continue
            print(f"{part.name} ...", flush=True)
            began = time.monotonic()
            try:
                entry: dict[str, Any] = {"ok": True, "result": part.run()}
            except Exception as error:
                entry = {"ok": False, "error": f"{type(error).__name__}: {error}"[-TAIL:]}
            report["parts"][part.name] = {**entry, "seconds": round(time.monotonic() - began, 1)}
            print("  ok" if entry["ok"] else f"  FAILED: {entry['error'].splitlines()[0]}", flush=True)
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
