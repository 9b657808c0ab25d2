"""Engine directories as model caches lay them out."""

import hashlib
import os
import shutil
from pathlib import Path


def linked_copy(engine: Path, folder: Path) -> Path:
    """`folder/snapshots/engine`, whose files are relative links to `folder/blobs/<SHA-256>`."""
    target, blobs = folder / "snapshots" / "engine", folder / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in engine.rglob("*"):
        if path.is_file():
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            link = target / path.relative_to(engine)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return target
