"""Where an export is written until it is complete: `DIR.partial`, renamed to `DIR` at the very end.

A directory without a manifest is never accepted as an engine, and the manifest is the last file written. Each finished
component is recorded with the SHA-256 of its files, so that an interrupted export can be resumed. A process that is
killed at any moment leaves what the next one finishes.
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
from ebca.export import lock
from ebca.export.lock import FolderLock
from ebca.export.output import (
    HOUSEKEEPING,
    PROGRESS,
    TRACES,
    check_output,
    check_room,
    partial_folder,
    remove_housekeeping,
)

__all__ = ["Workspace", "check_output", "check_room", "component_files"]


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
        self.folder = partial_folder(output)
        self._key = key
        self._overwrite = overwrite
        check_output(output, overwrite=overwrite)
        try:
            self._lock = self._acquire()
            # Another export may have finished since.
            check_output(output, overwrite=overwrite)
            (self.folder / manifests.FILE_NAME).unlink(missing_ok=True)
            self._done: dict[str, Any] = self._load()
            # From here on the folder says that an export made it.
            self._save()
        except OSError as error:
            raise ExportError(
                f"cannot write to '{self.folder}': {error.strerror or error}", "name another folder, or make room"
            ) from None

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
        self._save()

    def record(self, path: str) -> FileRecord:
        """Size and SHA-256 of a file in the folder, read back from disk unless recorded before."""
        for entry in self._done.values():
            if path in entry["files"]:
                return FileRecord(**entry["files"][path])
        return self._read(path)

    def _read(self, path: str) -> FileRecord:
        return FileRecord((self.folder / path).stat().st_size, sha256(self.folder / path))

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest and move the folder to its place.

        Raises:
            EngineError: an inconsistent manifest.
            ExportError: something has been put there meanwhile.
        """
        text = manifest.to_json()
        # What no host would open is an error here, and not at its first use.
        manifests.parse(text.encode())
        self._remove_unknown(manifest)
        self._write(manifests.FILE_NAME, text)
        check_output(self.output, overwrite=self._overwrite)
        place = Path(os.path.realpath(self.output)) if self.output.is_symlink() else self.output
        old = None
        if place.exists() and any(place.iterdir()):
            old = place.with_name(f".{place.name}.{os.getpid()}.old")
            place.rename(old)
        elif place.exists():
            place.rmdir()
        try:
            self.folder.rename(place)
        except OSError:
            if old is not None:
                old.rename(place)
            raise
        # Last: an export that is killed before this point can still be resumed.
        self._lock.folder = place
        self._lock.release()
        remove_housekeeping(place)
        return self.output

    def release(self) -> None:
        """Release the lock after a failure; finished work stays for the next export."""
        self._lock.release()

    def _acquire(self) -> FolderLock:
        held = FolderLock.acquire(self.folder)
        if isinstance(held, int):
            who = f"process {held}" if held else "another process"
            raise ExportError(f"{who} is exporting to '{self.output}' right now", "wait for it or stop it")
        return held

    def _load(self) -> dict[str, Any]:
        try:
            state = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            if state["key"] == self._key and all(_is_entry(entry) for entry in state["done"].values()):
                return dict(state["done"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        for path in self.folder.iterdir():
            if path.name != lock.FILE_NAME:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return {}

    def _save(self) -> None:
        self._write(PROGRESS, json.dumps({"key": self._key, "done": self._done}))

    def _write(self, name: str, text: str) -> None:
        """Write a file at once: whoever reads it finds the old text or the new one."""
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / name)

    def _remove_unknown(self, manifest: Manifest) -> None:
        known = {*manifest.files, *HOUSEKEEPING}
        for path in [p for p in self.folder.rglob("*") if p.is_file() or p.is_symlink()]:
            name = path.relative_to(self.folder)
            if name.as_posix() not in known and name.parts[0] != TRACES:
                path.unlink()

    def _intact(self, path: str, record: Mapping[str, Any]) -> bool:
        file = self.folder / path
        return file.is_file() and file.stat().st_size == record["size"] and sha256(file) == record["sha256"]


def component_files(component: Component) -> list[str]:
    """All paths of a component, relative to the engine directory."""
    paths = [component.graph, *component.lowered.values()]
    return paths if component.weights is None else [*paths, component.weights]


def _is_entry(entry: Any) -> bool:
    """Whether a piece of the record of finished work has the form that `put_files` gives it."""
    return isinstance(entry, dict) and isinstance(entry.get("facts"), dict) and isinstance(entry.get("files"), dict)
