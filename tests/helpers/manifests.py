"""Manifests that a test changes: written with the digest that they would have if the export had made them so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ebca.engines.contract import digest
from ebca.engines.contract.manifest import FILE_NAME


def load(folder: Path) -> dict[str, Any]:
    """The manifest of an engine directory as plain JSON."""
    return dict(json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))


def stamped(data: Any) -> bytes:
    """The contents of a manifest with the right digest; of something else than an object, its JSON."""
    return (digest.stamped(data) if isinstance(data, dict) else json.dumps(data)).encode()


def write(folder: Path, data: Any) -> Path:
    """Write a manifest with the right digest, in place of a link too; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).unlink(missing_ok=True)
    (folder / FILE_NAME).write_bytes(stamped(data))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the manifest of an engine directory, and stamp it again; returns the folder."""
    data = load(folder)
    change(data)
    return write(folder, data)
