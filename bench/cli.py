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
    "serving": _Benchmark("ebca.bench.serving.cli"),
    "alignment": _Benchmark("ebca.bench.alignment.cli", reads_images=True),
    "ane": _Benchmark("ebca.bench.ane.cli"),
    "tasks": _Benchmark("ebca.bench.tasks.cli", reads_images=True),
    "edit": _Benchmark("ebca.bench.edit.cli", reads_images=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. The first word names the benchmark; without one it is `latency`."""
    return console.run(PROGRAM, lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(words: list[str]) -> int:
    name = "latency" if not words or words[0].startswith("-") else words.pop(0)
    if name not in _BENCHMARKS:
        console.Parser(PROGRAM).error(f"there is no benchmark '{name}'; choose from {', '.join(_BENCHMARKS)}")
    benchmark = _BENCHMARKS[name]
    # Only these need scipy, so it is not among the packages that ebca always installs.
    if benchmark.reads_images and find_spec("scipy") is None:
        raise EbcaError("reading images needs scipy", 'run `pip install scipy`, or `pip install "ebca[bench]"`')
    body: Callable[[Sequence[str]], int] = import_module(benchmark.module).main
    return body(words)


if __name__ == "__main__":
    sys.exit(main())
