"""Manifests that say something else: refused in one line, by the doctor too, or accepted and run."""

import os
import random
import shutil
from pathlib import Path
from typing import Any, Final

from ebca.bench.reliability.checks.damaged_files import image, own_cache
from ebca.bench.reliability.mutations import Mutation, mutations
from ebca.bench.reliability.table import Options
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import open_directory
from ebca.errors import EbcaError, EngineError
from ebca.runtime.diagnostics.directory import check_engine

_LONGEST: Final = 1000
"""Characters of an error: names in a manifest may have a few hundred."""
_RUN: Final = 4
"""One of so many manifests that are accepted makes an image, which takes a hundred times as long as reading one."""


def run(options: Options) -> dict[str, Any]:
    """count: changed manifests. Every other one has the digest of its contents, as if the export had made it so.

    A failure is a change that the digest does not show, an error of another kind or of more than one line, a manifest
    that opens and that the doctor refuses, or the other way round.
    """
    source, folder = open_directory(options.engine).path, options.folder / "engine"
    shutil.copytree(source, folder, copy_function=_link)
    contents = (source / manifests.FILE_NAME).read_bytes()
    report: dict[str, Any] = {"refused": 0, "accepted": 0, "images": 0, "refused_when_run": 0, "failures": []}
    with own_cache(options.folder / "cache"):
        for mutation in mutations(contents, random.Random(options.seed), options.count):
            (folder / manifests.FILE_NAME).unlink(missing_ok=True)
            (folder / manifests.FILE_NAME).write_bytes(mutation.contents)
            try:
                problem = _outcome(mutation, folder, options.backend, report)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                report["failures"].append(f"{mutation.text}{' (stamped)' if mutation.stamped else ''}: {problem}"[:400])
    return report


def _outcome(mutation: Mutation, folder: Path, backend: str, report: dict[str, Any]) -> str | None:
    """What is wrong with how a manifest is treated; None if nothing is."""
    try:
        open_directory(folder)
    except EngineError as error:
        report["refused"] += 1
        text = str(error)
        if "\n" in text or len(text) > _LONGEST:
            return f"said {len(text)} characters in {text.count(chr(10)) + 1} lines"
        return None if _problems(folder, backend) else "it is refused, and the doctor finds nothing"
    report["accepted"] += 1
    if not mutation.stamped:
        return "it was changed, and opens"
    if report["accepted"] % _RUN:
        return None
    try:
        image(folder, backend)
    except EbcaError as error:
        report["refused_when_run"] += 1
        if "\n" in str(error):
            return "an error of more than one line"
        return None if _problems(folder, backend) else f"it does not run ({error}), and the doctor finds nothing"
    report["images"] += 1
    # The doctor also reads the files that other backends use.
    found = [text for text in _problems(folder, backend) if "is corrupted" not in text]
    return f"it runs, and the doctor says {found[0]}" if found else None


def _problems(folder: Path, backend: str) -> list[str]:
    return [finding.text for finding in check_engine(folder, backend) if finding.level == "problem"]


def _link(source: str, target: str) -> None:
    os.link(source, target)
