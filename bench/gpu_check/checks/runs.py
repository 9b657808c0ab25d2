"""Do the engine directories open, are their evaluations captured, and are results finite? The small ones come first."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ebca.bench.gpu_check.checks.timing import UPDATE
from ebca.bench.gpu_check.results import Failed, Found, Skipped
from ebca.bench.gpu_check.visit import BACKEND, Visit
from ebca.runtime.engine import load

_STEPS = 4


def run(visit: Visit, found: Found) -> None:
    wrong = []
    for name in ("tiny", "tiny-xl", "model"):
        try:
            found[name] = report = try_directory(visit.engine(name), BACKEND)
            wrong += [f"{name}: {problem}" for problem in problems(report)]
        except Skipped as error:
            found[name] = {"skipped": str(error)}
        except Exception as error:
            # The other directories may run.
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            wrong.append(f"{name}: {error}")
    if wrong:
        raise Failed("; ".join(wrong))
    if all("skipped" in report for report in found.results.values()):
        raise Skipped("there is no engine directory")


def try_directory(engine: Path, backend: str) -> dict[str, Any]:
    """Open a directory, and generate with updates and without, twice each."""
    report: dict[str, Any] = {}
    with _warnings() as warned:
        began = time.perf_counter()
        with load(engine, "cuda", backend) as opened, opened.session() as session:
            report["open_s"] = time.perf_counter() - began
            for name, gammas in (("update", UPDATE), ("vanilla", {})):
                seconds = []
                for _ in range(2):
                    began = time.perf_counter()
                    made = session.generate("a photo of a cat", steps=_STEPS, seed=0, output="np", **gammas)
                    seconds.append(time.perf_counter() - began)
                finite = bool(np.isfinite(made.latents).all() and np.isfinite(made.images).all())
                report[name] = {"finite": finite, "first_s": seconds[0], "next_s": seconds[1]}
    return report | {"captured": not any("captur" in text for text in warned), "warnings": warned}


def problems(report: dict[str, Any]) -> list[str]:
    """What is wrong with a report of `try_directory`."""
    found = [f"results of {name} are not finite" for name in ("update", "vanilla") if not report[name]["finite"]]
    return found if report["captured"] else [*found, f"not captured: {report['warnings'][0]}"]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings that the package logs inside the block."""
    texts: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("ebca")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
