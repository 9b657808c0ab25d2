"""Running the parts of the check as commands."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL = 4000
"""Characters of output that a result keeps."""


@dataclass(frozen=True)
class Part:
    """A part of the check. `run` returns its result as JSON values, or raises if the part failed."""

    name: str
    run: Callable[[], Any]


class Failed(Exception):
    """A part failed; the message is the end of what it printed."""


def command(words: Sequence[str], result: Path | None = None, environment: Mapping[str, str] | None = None) -> Any:
    """Run a command. Returns the JSON it wrote to `result`, or the end of what it printed. Raises Failed."""
    done = subprocess.run(
        list(words), capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    printed = (done.stdout + done.stderr)[-TAIL:]
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}\n{printed}")
    return json.loads(result.read_text(encoding="utf-8")) if result is not None else printed
