"""Results that are kept as they come, so that an interrupted benchmark continues where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebca.result_files import as_parameter_errors


class Journal:
    """Records by key, one line of JSON each. Not safe for two processes at once.

    Args:
        path: continued if it exists; None keeps the records in memory only.

    Raises:
        ParameterError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: dict[str, Any] = {}
        if path is None:
            return
        with as_parameter_errors(path, "progress"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="ascii", errors="replace").splitlines() if path.exists() else []
        whole = [line for line in map(_parsed, lines) if line is not None]
        self._records = {line["key"]: line["record"] for line in whole}
        if len(whole) < len(lines):
            # A line that was cut off by a crash, or damaged: another must not be appended to it.
            with as_parameter_errors(path, "progress"):
                path.write_text("".join(map(_line, self._records, self._records.values())), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._records)

    def get(self, facts: Mapping[str, Any]) -> Any:
        """The record of these facts, or None."""
        return self._records.get(key(facts))

    def add(self, facts: Mapping[str, Any], record: Any) -> None:
        """Keep a record, in the file too. Both are JSON values."""
        self._records[key(facts)] = record
        if self._path is not None:
            with as_parameter_errors(self._path, "progress"), self._path.open("a", encoding="utf-8") as file:
                file.write(_line(key(facts), record))

    def remove(self) -> None:
        """Delete the file: the results are written elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def key(facts: Mapping[str, Any]) -> str:
    """One text per set of facts."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _line(name: str, record: Any) -> str:
    return json.dumps({"key": name, "record": record}, separators=(",", ":")) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    # `_line` writes ASCII only.
    if "\ufffd" in line:
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(found, dict) and {"key", "record"} <= found.keys() and isinstance(found["key"], str)
    return found if sound else None
