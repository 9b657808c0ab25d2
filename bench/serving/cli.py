"""ebca-bench serving: load on a service, whose images are compared with those of a plain loop."""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

import ebca
from ebca import console
from ebca.bench import options
from ebca.errors import EbcaError
from ebca.runtime.validation import at_least_one

PROGRAM = "ebca-bench serving"

_DISTINCT = 20
_COUNTS = ("requests", "connections", "rounds", "steps", "workers", "max_batch")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.command_line(PROGRAM, __doc__)
    options.add_engine(p, default="shapes")
    options.add_json(p)
    p.add_argument("--requests", type=int, default=1000, metavar="N", help="calls (default: %(default)s)")
    p.add_argument("--connections", type=int, default=32, metavar="N", help="at a time (default: %(default)s)")
    p.add_argument(
        "--rounds", type=int, default=5, metavar="N",
        help="the plain loop and a share of the calls take turns so often (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--steps", type=int, default=4, metavar="N", help="of each image (default: %(default)s)")
    p.add_argument("--workers", type=int, default=1, metavar="N", help="of the service (default: %(default)s)")
    p.add_argument("--max-batch", type=int, default=1, metavar="N", help="of the service (default: %(default)s)")
    p.add_argument(
        "--url", help="of a service that runs already, of the same engine on the same kind of machine; its other "
        "callers must be quiet (default: one is started)",
    )  # fmt: skip
    p.add_argument("--api-key", help="for --url")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 if an image was lost, made twice, or wrong."""
    p = parser()

    def body() -> int:
        args = p.parse_args(argv)
        options.check_results(args)
        report = measure(args)
        for name, value in report.items():
            if name != "wrong":
                print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
        for line in report["wrong"][:20]:
            console.tell_error(PROGRAM, line)
        if args.json is not None:
            console.write_json(args.json, report)
        return 1 if report["wrong"] else 0

    return console.run(PROGRAM, body, interrupted=options.INTERRUPTED)


def measure(args: Any) -> dict[str, Any]:
    """Run the loop and the load that the options ask for, in turns.

    Raises:
        ParameterError: a number below 1.
        EbcaError: there is no service.
    """
    for name in _COUNTS:
        at_least_one(f"--{name.replace('_', '-')}", getattr(args, name))
    try:
        from ebca.bench.serving import load
    except ImportError as error:
        remedy = 'run `pip install "ebca[serve]" httpx`'
        raise EbcaError(f"{PROGRAM} needs packages that are not installed: {error.name}", remedy) from None
    asked = load.requests(min(_DISTINCT, args.requests), args.steps)
    found = load.Found()
    loop: list[float] = []
    service: list[float] = []
    memory: list[float] = []
    with ebca.load(args.engine) as engine, _service(args) as (address, process), console.ProgressLine() as line:
        files, _ = load.direct(engine, asked)
        before = asyncio.run(load.finished_jobs(address, args.api_key))
        for calls in _shares(args.requests, args.rounds):
            again, rate = load.direct(engine, asked)
            if again != files:
                raise EbcaError("the plain loop made other images than before", "this is a bug; please report it")
            loop.append(rate)
            call = load.load(address, asked, files, found, calls=calls, connections=args.connections, key=args.api_key)
            service.append(len(calls) / asyncio.run(call))
            if process is not None:
                memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            line.update("calls", calls.stop, args.requests)
        made = asyncio.run(load.finished_jobs(address, args.api_key)) - before
    if made != args.requests:
        found.wrong.append(f"the service made {made} jobs for {args.requests} calls")
    if len(set(found.jobs)) != len(found.jobs):
        found.wrong.append("a job was given to two calls")
    ratios = [ours / plain for ours, plain in zip(service, loop, strict=True) if plain]
    return {
        "calls": args.requests,
        "connections": args.connections,
        "workers": args.workers,
        "jobs made": made,
        "times the queue was full": found.refused,
        "plain loop, images/s": median(loop),
        "service, images/s": median(service),
        "service / plain loop": median(ratios) if ratios else 0.0,
        "smallest ratio": min(ratios, default=0.0),
        "largest ratio": max(ratios, default=0.0),
        "p50, s": found.quantile(0.5),
        "p99, s": found.quantile(0.99),
        "memory after rounds, MB": [round(value) for value in memory],
        "wrong": found.wrong,
    }


def _shares(calls: int, rounds: int) -> Iterator[range]:
    """The numbers of the calls of each round."""
    rounds = min(rounds, calls)
    for index in range(rounds):
        yield range(calls * index // rounds, calls * (index + 1) // rounds)


@contextmanager
def _service(args: Any) -> Iterator[tuple[str, "subprocess.Popen[bytes] | None"]]:
    """The address of a service: the given one, or one in a process of its own."""
    if args.url is not None:
        yield args.url.rstrip("/"), None
        return
    with tempfile.TemporaryDirectory(prefix="ebca-bench-") as folder:
        words = ["-m", "ebca.runtime.serving.cli", "--engine", args.engine, "--port", "0"]
        words += ["--data-dir", folder, "--workers", str(args.workers)]
        words += ["--max-batch", str(args.max_batch)]
        with (
            (Path(folder) / "log").open("w+") as log,
            subprocess.Popen([sys.executable, *words], stderr=log) as process,
        ):
            try:
                yield _address(Path(folder) / "log", process), process
            finally:
                process.terminate()


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    while process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith("serving http"):
                return line.split()[1]
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise EbcaError(f"the service has ended: {log.read_text(encoding='utf-8')[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
