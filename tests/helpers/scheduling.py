"""Engine directories with the scheduler tables of another diffusers config than the one they were exported with."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from helpers import manifests


def with_tables(source: Path, target: Path, section: dict[str, Any]) -> Path:
    """A copy of an engine directory with a scheduler section, whose files are in `target` already or are those of
    `source`; returns `target`.

    Args:
        section: as `ebca.export.stages.schedulers.write_tables` returns it for `target`.
    """
    for file in source.rglob("*"):
        copy = target / file.relative_to(source)
        if file.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    manifest = manifests.load(source)
    for name in (section["alphas_cumprod"], *(table["file"] for table in section["tables"].values())):
        content = (target / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["schedulers"] = section
    return manifests.write(target, manifest)
