"""What a part reports, while it runs and when it ends."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
ENDED: Final = "ended"
"""The part ran into its limit. What it had found by then is kept."""


class Skipped(Exception):
    """A part cannot run here, which is no fault; the message says why."""


class Failed(Exception):
    """Something is wrong; the message says what."""


class Found:
    """The results of one part, written to its file whenever one is added, so that a part may be ended at any time.

    Args:
        file: where to write; None: nowhere.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.results: dict[str, Any] = {}
        self._write(None, "")

    def __setitem__(self, name: str, value: Any) -> None:
        self.results[name] = value
        self._write(None, "")

    def update(self, results: Mapping[str, Any]) -> None:
        """Add several."""
        self.results.update(results)
        self._write(None, "")

    def end(self, status: str, reason: str = "") -> None:
        """Record how the part ended."""
        self._write(status, reason)

    def _write(self, status: str | None, reason: str) -> None:
        if self._file is not None:
            write_json(self._file, {"status": status, "reason": reason, "result": self.results})


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old contents or the new ones, but no part of them."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    new.replace(file)


def against(value: float, target: float) -> dict[str, Any]:
    """A value beside the largest one that is wanted. A target that is not met is no failure."""
    return {"value": value, "target": target, "met": value <= target}


def targets(result: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value with a target in a result, by its path, such as "one_launch.update_s"."""
    if not isinstance(result, dict):
        return
    if {"value", "target", "met"} <= result.keys():
        yield name, result
        return
    for key, value in result.items():
        yield from targets(value, f"{name}.{key}" if name else str(key))
