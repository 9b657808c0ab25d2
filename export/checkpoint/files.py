"""Reading checkpoint files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ebca.errors import ModelError

_WEIGHTS = (".weight", ".bias")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or ModelError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}", "download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not a JSON object", "download it again")
    return value


def check_safetensors(path: Path) -> None:
    """Raise ModelError if the file's header is broken, if the file is cut short, or if its weights are integers.
    Reads only the header."""
    try:
        with safe_open(path, framework="pt") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"broken safetensors file {path}: {error}", "download it again") from error
    for name, dtype in dtypes.items():
        # Integers are values of a quantised checkpoint, whose scales we do not know; a scalar or a table counts.
        if not dtype.startswith(("F", "BF")) and name.endswith(_WEIGHTS):
            raise ModelError(
                f"{path} holds {name} as {dtype}",
                "quantised weights are not supported: take float16 or float32 ones",
            )


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A line that ends so says nothing without the next.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
