"""ebca-bench: the benchmarks, by name."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from ebca import console
from ebca.errors import EbcaError

PROGRAM: Final = "ebca-bench"


@dataclass(frozen=True)
class _Benchmark:
    """A benchmark: the module of its command line, imported when it is asked for, and whether it reads images."""

    module: str
    reads_images: bool = False


_BENCHMARKS: Final[Mapping[str, _Benchmark]] = {
    "latency": _Benchmark("ebca.bench.latency.cli"),
    "startup": _Benchmark("ebca.bench.startup"),
    "alignment": _Benchmark("ebca.bench.alignment.cli", reads_images=True),
    "tasks": _Benchmark("ebca.bench.tasks.cli", reads_images=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. The first word names the benchmark; without one it is `latency`."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in _BENCHMARKS else "latency"
    return console.run(PROGRAM, lambda: _run(_BENCHMARKS[name], words))


def _run(benchmark: _Benchmark, argv: Sequence[str]) -> int:
    # Only these need scipy, so it is not among the packages that ebca always installs.
    if benchmark.reads_images and find_spec("scipy") is None:
        raise EbcaError("reading images needs scipy", 'run `pip install scipy`, or `pip install "ebca[bench]"`')
    body: Callable[[Sequence[str]], int] = import_module(benchmark.module).main
    return body(argv)


if __name__ == "__main__":
    sys.exit(main())
