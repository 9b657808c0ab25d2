"""ebca-bench startup: how long it takes to import ebca, and to make an image with `ebca-run` in a new process."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ebca
from ebca import console
from ebca.bench import options
from ebca.bench.timing import Samples
from ebca.errors import EbcaError

PROGRAM = "ebca-bench startup"

IMPORT_SECONDS = 0.3
"""An import that takes longer delays every command noticeably."""
RUN_SECONDS = 3.0
"""A complete `ebca-run` with a small engine that is prepared already."""

_IMPORT = "import time; t = time.perf_counter(); import ebca; print(time.perf_counter() - t)"


def measure(engine: str, repeats: int) -> dict[str, Samples]:
    """Seconds of `import` and of `run`, each in new processes.

    Args:
        engine: directory or bundled name; it is prepared before anything is timed.
        repeats: processes of each kind.

    Raises:
        EngineError, BackendError: the engine cannot be opened.
        EbcaError: a process fails; the message is the last line it printed.
    """
    ebca.load(engine).close()
    with tempfile.TemporaryDirectory(prefix="ebca-bench-") as folder:
        run = ["-m", "ebca.runtime.cli.run", "--engine", engine, "--prompt", "a cat", "--seed", "1"]
        run += ["--output", str(Path(folder) / "image.png")]
        ways: Mapping[str, Callable[[], float]] = {
            "import": lambda: float(_python("-c", _IMPORT)),
            "run": lambda: _seconds(lambda: _python(*run)),
        }
        return {name: Samples(tuple(way() for _ in range(repeats))) for name, way in ways.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 if a time is above its limit."""
    p = options.command_line(PROGRAM, __doc__, f"Limits: {IMPORT_SECONDS} s for the import, {RUN_SECONDS} s for a run.")
    options.add_engine(p, default="shapes")
    options.add_json(p)
    options.add_repeats(p, 5)

    def body() -> int:
        args = p.parse_args(argv)
        options.check_results(args)
        samples = measure(args.engine, args.repeats)
        slow = _print(samples)
        if args.json is not None:
            console.write_json(args.json, _to_json(samples))
        return 1 if slow else 0

    return console.run(PROGRAM, body, interrupted=options.INTERRUPTED)


def _print(samples: Mapping[str, Samples]) -> bool:
    """Print the fastest time, which other work on the machine disturbs least; returns whether one is above its
    limit."""
    slow = False
    for name, limit in (("import", IMPORT_SECONDS), ("run", RUN_SECONDS)):
        best = min(samples[name].seconds)
        slow |= best > limit
        print(f"{name:8} {best:.2f} s, median {samples[name].p50:.2f} s (limit {limit} s)")
    return slow


def _to_json(samples: Mapping[str, Samples]) -> dict[str, Any]:
    return {name: {"best_s": min(taken.seconds), "p50_s": taken.p50} for name, taken in samples.items()}


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _python(*argv: str) -> str:
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EbcaError(f"'{' '.join(argv)}' failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return done.stdout
