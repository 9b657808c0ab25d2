"""Prepared forms of components, in the user's cache: rebuildable, verified, bounded.

    <cache>/<key>/engine.json              what the key was made of
    <cache>/<key>/<component>.onnx, ...    written by a backend's `prepare`
    <cache>/<key>/<component>.json         stamp: size, time and SHA-256 of the prepared files; size and time of the
                                           source files when their SHA-256 was last verified

The key covers everything that changes a prepared form: the contents of the component files, the backend, its version
and precision, and the processor. A component is opened without reading its files if sizes and times match the stamp.
Otherwise contents are compared, and a prepared form that fails is made again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebca.engines.backends.protocol import Backend, PreparingBackend, Runner
from ebca.engines.cache.storage import MARKER
from ebca.engines.contract.directory import EngineDirectory, sha256
from ebca.engines.machine import mapped_files
from ebca.engines.machine.cache_folder import cache_folder
from ebca.errors import EngineError

Progress = Callable[[int, int, str], None]

# Increase this whenever a backend's `prepare` changes what it writes. The C++ library writes the same folders, keys and
# stamps, so C++ hosts and Python open what either has prepared: change both together.
PREPARED_VERSION = 1


@dataclass(frozen=True)
class PreparedEngine:
    """The components of one engine directory, prepared for one backend on this machine.

    With a backend that prepares nothing, components are only verified, and opened as they are in the directory.
    """

    directory: EngineDirectory
    backend: Backend
    folder: Path
    identity: Mapping[str, Any]

    def prepare(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Prepare the components that are missing or stale.

        Args:
            names: components.
            progress: called with (done, total, component) for those that have to be prepared.

        Raises:
            EngineError: a source file is corrupted, or the cache cannot be written.
        """
        missing = [name for name in names if not self._is_current(name)]
        if not missing:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_atomically(self.folder / MARKER, json.dumps({**self.identity, "engine": str(self.directory.path)}))
            if isinstance(self.backend, PreparingBackend):
                _check_room(self.folder, sum(self._source_bytes(name) for name in missing))
            for index, name in enumerate(missing):
                if progress:
                    progress(index, len(missing), name)
                self._make(name)
            if progress:
                progress(len(missing), len(missing), "")
        except OSError as error:
            raise EngineError(
                f"cannot write prepared engines to '{self.folder}': {error}", "set EBCA_CACHE_DIR to a folder with room"
            ) from None

    def open(self, name: str, dimensions: Mapping[str, int] | None = None) -> Runner:
        """Open a component, preparing it first if needed. `dimensions` as in `Backend.open`."""
        if not self._is_current(name):
            self.prepare([name])
        component = self.directory.manifest.components[name]
        prepares = isinstance(self.backend, PreparingBackend)
        return self.backend.open(self._target(name) if prepares else self._graph(name), component, dimensions)

    def forget(self, names: Iterable[str]) -> None:
        """Drop the mapped files of components from memory; pages are read again when they are used."""
        files = [file for name in names for file in self.folder.glob(f"{name}.*")]
        mapped_files.forget(*files)

    def _target(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def _graph(self, name: str) -> Path:
        return self.directory.file(self.directory.manifest.components[name].graph_for(self.backend.name))

    def _stamp(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _sources(self, name: str) -> tuple[str, ...]:
        return self.directory.manifest.components[name].files(self.backend.name)

    def _source_bytes(self, name: str) -> int:
        return sum(self.directory.manifest.files[f].size for f in self._sources(name))

    def _is_current(self, name: str) -> bool:
        try:
            stamp = json.loads(self._stamp(name).read_text(encoding="utf-8"))
            prepared, sources = stamp["prepared"], stamp["sources"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        # Made of other files: the manifest says something else than it did then.
        if sources.keys() != set(self._sources(name)):
            return False
        changed = [f for f in self._sources(name) if sources.get(f) != _stat(self.directory.file(f))]
        if changed:
            self.directory.verify(changed)
            stamp["sources"] = {f: _stat(self.directory.file(f)) for f in self._sources(name)}
            _write_atomically(self._stamp(name), json.dumps(stamp))
        for file, record in prepared.items():
            path = self.folder / file
            if not path.is_file() or path.stat().st_size != record["size"]:
                return False
            if path.stat().st_mtime_ns != record["mtime_ns"] and sha256(path) != record["sha256"]:
                return False
        return True

    def _make(self, name: str) -> None:
        self.directory.verify(self._sources(name))
        work = self.folder / f".{name}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            if isinstance(self.backend, PreparingBackend):
                with self._without_links(name) as graph:
                    self.backend.prepare(graph, work / self._target(name).name)
            made = sorted(p for p in work.iterdir())
            for path in made:
                path.replace(self.folder / path.name)
            prepared = {p.name: {**_stat(self.folder / p.name), "sha256": sha256(self.folder / p.name)} for p in made}
            sources = {f: _stat(self.directory.file(f)) for f in self._sources(name)}
            _write_atomically(self._stamp(name), json.dumps({"prepared": prepared, "sources": sources}))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def _without_links(self, name: str) -> Iterator[Path]:
        """The graph of a component with its weights beside it. Libraries refuse weights that a link leads elsewhere,
        so files that are links get a second name in the cache meanwhile."""
        sources = self._sources(name)
        if not any(self.directory.file(source).is_symlink() for source in sources):
            yield self._graph(name)
            return
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=self.folder) as folder:
            for source in sources:
                path = Path(folder) / source
                path.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(self.directory.file(source).resolve(), path)
            yield Path(folder) / sources[0]


def prepared_engine(directory: EngineDirectory, backend: Backend) -> PreparedEngine:
    """The prepared components of an engine directory; nothing is prepared yet."""
    files = {name: record.sha256 for name, record in sorted(directory.manifest.files.items())}
    identity = {"version": PREPARED_VERSION, "backend": backend.name, **backend.identity(), "files": files}
    # Compact JSON, which every library writes the same way.
    spelled = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(spelled.encode()).hexdigest()[:24]
    folder = cache_folder() / f"{backend.name}-{key}"
    if folder.is_dir():
        with suppress(OSError):
            os.utime(folder)
    return PreparedEngine(directory, backend, folder, identity)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    # A prepared form may pad weights to the processor's block size.
    wanted = int(needed * 1.1) + (64 << 20)
    if free < wanted:
        raise EngineError(
            f"'{folder}' has {free / 1e9:.1f} GB free, preparing this engine needs {wanted / 1e9:.1f} GB",
            "free some room or set EBCA_CACHE_DIR",
        )


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another disk, or a file of another user.
        shutil.copyfile(source, target)


def _stat(path: Path) -> dict[str, Any]:
    info = path.stat()
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns}


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
