"""Where an export is written until it is complete: `DIR.partial`, renamed to `DIR` at the very end.

A directory without a manifest is never accepted as an engine, and the manifest is the last file written. Each finished
component is recorded with the SHA-256 of its files, so that an interrupted export can be resumed.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import sha256
from ebca.engines.contract.manifest import Component, FileRecord, Manifest, component_from_json
from ebca.errors import ExportError

_PROGRESS = "progress.json"
_LOCK = "export.pid"


class Workspace:
    """The folder of one export in progress.

    Args:
        output: the engine directory to make.
        key: identity of the export (weights, options, versions); work done under another key is deleted.
        overwrite: replace an engine that is there already.

    Raises:
        ExportError: the output exists, or its parent cannot be written, or another export is writing there.
    """

    def __init__(self, output: Path, key: str, *, overwrite: bool = False) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".partial")
        self._key = key
        self._overwrite = overwrite
        check_output(output, overwrite=overwrite)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            (self.folder / manifests.FILE_NAME).unlink(missing_ok=True)
            self._done: dict[str, Any] = self._load()
        except OSError as error:
            raise ExportError(f"cannot write to '{self.folder}': {error.strerror or error}") from None

    @property
    def resumed(self) -> int:
        """Number of components that an earlier, interrupted export finished."""
        return len(self._done)

    def get(self, name: str) -> tuple[Component, dict[str, Any]] | None:
        """A component finished earlier, and the facts recorded with it; None if absent or if its files changed."""
        entry = self.facts(name)
        return (component_from_json(entry["component"]), entry["facts"]) if entry is not None else None

    def put(self, name: str, component: Component, facts: Mapping[str, Any]) -> None:
        """Record a finished component."""
        self.put_files(name, component_files(component), {"component": asdict(component), "facts": dict(facts)})

    def facts(self, name: str) -> dict[str, Any] | None:
        """The facts recorded with files that an earlier export finished; None if absent or if one of them changed."""
        entry = self._done.get(name)
        if entry is None or not all(self._intact(path, record) for path, record in entry["files"].items()):
            return None
        return dict(entry["facts"])

    def put_files(self, name: str, paths: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Record finished files."""
        files = {path: asdict(self._read(path)) for path in paths}
        self._done[name] = {"facts": dict(facts), "files": files}
        text = json.dumps({"key": self._key, "done": self._done})
        temporary = self.folder / f"{_PROGRESS}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / _PROGRESS)

    def record(self, path: str) -> FileRecord:
        """Size and SHA-256 of a file in the folder, read back from disk unless recorded before."""
        for entry in self._done.values():
            if path in entry["files"]:
                return FileRecord(**entry["files"][path])
        return self._read(path)

    def _read(self, path: str) -> FileRecord:
        return FileRecord((self.folder / path).stat().st_size, sha256(self.folder / path))

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest and move the folder to its place. Raises EngineError for an inconsistent manifest."""
        known = {*manifest.files, _PROGRESS, _LOCK}
        for path in [p for p in self.folder.rglob("*") if p.is_file()]:
            if path.relative_to(self.folder).as_posix() not in known:
                path.unlink()
        temporary = self.folder / f"{manifests.FILE_NAME}.tmp"
        text = manifest.to_json()
        # What no host would open is an error here, and not at its first use.
        manifests.parse(text.encode())
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / manifests.FILE_NAME)
        old = None
        if self.output.exists() and any(self.output.iterdir()):
            old = self.output.with_name(f".{self.output.name}.{os.getpid()}.old")
            self.output.rename(old)
        elif self.output.exists():
            self.output.rmdir()
        self.folder.rename(self.output)
        # Last: an export that is killed before this point can still be resumed.
        for name in (_PROGRESS, _LOCK):
            (self.output / name).unlink(missing_ok=True)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        return self.output

    def release(self) -> None:
        """Release the lock after a failure; finished work stays for the next export."""
        (self.folder / _LOCK).unlink(missing_ok=True)

    def _lock(self) -> None:
        path = self.folder / _LOCK
        try:
            owner = int(path.read_text())
            os.kill(owner, 0)
        except (OSError, ValueError):
            owner = 0
        if owner not in (0, os.getpid()):
            raise ExportError(f"process {owner} is exporting to '{self.output}' right now", "wait for it or stop it")
        path.write_text(str(os.getpid()))

    def _load(self) -> dict[str, Any]:
        try:
            state = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
            if state["key"] == self._key:
                return dict(state["done"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {}

    def _intact(self, path: str, record: Mapping[str, Any]) -> bool:
        file = self.folder / path
        return file.is_file() and file.stat().st_size == record["size"] and sha256(file) == record["sha256"]


def component_files(component: Component) -> list[str]:
    """All paths of a component, relative to the engine directory."""
    paths = [component.graph, *component.lowered.values()]
    return paths if component.weights is None else [*paths, component.weights]


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that cannot be written, or that holds something. Changes nothing on disk.

    Raises:
        ExportError: see above.
    """
    if output.exists():
        if not output.is_dir():
            raise ExportError(f"output '{output}' is a file", "name a folder")
        entries = [p.name for p in output.iterdir()]
        if entries and manifests.FILE_NAME not in entries:
            raise ExportError(f"output folder '{output}' holds other files ({entries[0]}, ...)", "name a new folder")
        if entries and not overwrite:
            raise ExportError(f"output folder '{output}' holds an engine already", "pass --overwrite to replace it")
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"output folder '{output}' cannot be made: '{parent}' is not writable")


def check_room(output: Path, needed: int) -> None:
    """Raise ExportError when the disk of `output` has less than `needed` bytes free."""
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"no room in '{parent}': this export needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )
