"""The checks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Options:
    """What a check gets.

    engine: directory, or bundled name.
    backend: on the CPU.
    count: how often.
    seed: of random moments and images.
    folder: empty, for files of the check.
    """

    engine: str
    backend: str
    count: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Check:
    """One check: its name, its default count, and what it finds out. Its module has the same name, with "_" for "-"."""

    name: str
    count: int
    what: str

    @property
    def run(self) -> Callable[[Options], dict[str, Any]]:
        """The function of its module."""
        module = import_module(f"ebca.bench.reliability.checks.{self.name.replace('-', '_')}")
        function: Callable[[Options], dict[str, Any]] = module.run
        return function


CHECKS: Final = (
    Check("manifests", 1000, "a changed manifest is refused in one line, by the doctor too, or accepted and run"),
    Check("hostile-images", 1000, "images and masks made to be misread are read right, or refused in one line"),
    Check(
        "damaged-files", 200, "a directory with a damaged file gives the right image or one line; the doctor sees it"
    ),
    Check("cold-starts", 20, "two processes that prepare in one cache at the same time make the same image"),
    Check("kills", 50, "after kill -9 at a random moment of preparing, the next process makes the same image"),
    Check("threads", 25, "images of 8 threads equal those made one after the other (count: images per thread)"),
    Check("growth", 200, "memory and descriptors do not grow over many images"),
)
