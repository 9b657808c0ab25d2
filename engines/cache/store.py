"""Prepared components of one engine directory in one folder.

engine.json              what the folder's key was made of
<component>.onnx, ...    written by a backend's `prepare`
<component>.json         stamp: size, time and SHA-256 of the prepared files; size and time of the source files when
                         their SHA-256 was last verified
.lock                    held while components are prepared
.<component>.<random>    a component that is being prepared; what a killed process left is removed by the next one
"""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from ebca.engines.backends.protocol import Backend, PreparingBackend
from ebca.engines.cache.locks import locked
from ebca.engines.cache.parallel import run_each
from ebca.engines.cache.storage import LOCK, MARKER
from ebca.engines.contract.directory import EngineDirectory, sha256
from ebca.engines.machine.available import available_bytes
from ebca.errors import BackendError

Progress = Callable[[int, int, str], None]

_PROBE_BYTES = 64 << 10
_AT_ONCE = 2
# Of what a backend writes at least: it may store weights twice.
_MOST_GROWTH = 2
# Stamps are rewritten without the lock, within milliseconds.
_ABANDONED_SECONDS = 3600.0


class Store:
    """A folder of prepared components. Use from one thread at a time; other processes may use the same folder.

    Args:
        directory: the engine directory.
        backend: prepares components.
        folder: need not exist.
        identity: what the folder's key was made of.
    """

    def __init__(self, directory: EngineDirectory, backend: Backend, folder: Path, identity: Mapping[str, Any]) -> None:
        self._directory = directory
        self._backend = backend
        self.folder = folder
        self._identity = identity
        # Files whose contents were compared by this process, as they were then: a folder that cannot be written keeps
        # its stamps as they are.
        self._verified: set[tuple[Path, int, int]] = set()

    def target(self, name: str) -> Path:
        """The prepared form of a component."""
        return self.folder / f"{name}.onnx"

    def is_current(self, name: str) -> bool:
        """Whether a component is there, complete, and made from the source files as they are.

        Raises:
            EngineError: a source file is corrupted.
        """
        stamp = self._read_stamp(name)
        if stamp is None:
            return False
        prepared, sources = stamp["prepared"], stamp["sources"]
        # Made of other files: the manifest says something else than it did then.
        if sources.keys() != set(self._sources(name)):
            return False
        paths = {file: self._directory.file(file) for file in self._sources(name)}
        changed = [f for f, path in paths.items() if not self._is_as_recorded(path, sources.get(f))]
        if changed:
            self._directory.verify(changed)
            self._verified |= {_key(paths[file]) for file in changed}
            # Without it, the next process verifies again.
            with suppress(OSError):
                stamp["sources"] = {file: stat(path) for file, path in paths.items()}
                _write_atomically(self._stamp(name), json.dumps(stamp))
        try:
            return all(self._is_unchanged(self.folder / file, record) for file, record in prepared.items())
        except (OSError, KeyError, TypeError):
            # Deleted meanwhile, or no stamp of ours.
            return False

    def discard(self, name: str) -> None:
        """Forget a component, so that it is prepared again. Raises OSError if the folder cannot be written."""
        make_way(self._stamp(name))
        self._stamp(name).unlink(missing_ok=True)

    def make(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Prepare the components that are not current. One process prepares in a folder, others wait for it.

        Args:
            names: components.
            progress: called with (done, total, component) for those that have to be prepared.

        Raises:
            OSError: the folder cannot be written, or has too little room.
            EngineError: a source file is corrupted.
            BackendError: a component cannot be prepared, or what was prepared does not open.
        """
        try:
            self._make(list(names), progress)
        except FileNotFoundError:
            # Somebody deleted the folder meanwhile.
            self._make(list(names), progress)

    def _make(self, names: list[str], progress: Progress | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        make_way(self.folder / LOCK)
        with locked(self.folder / LOCK):
            missing = [name for name in names if not self.is_current(name)]
            if not missing:
                return
            self._remove_abandoned()
            _write_atomically(self.folder / MARKER, json.dumps({**self._identity, "engine": str(self._directory.path)}))
            if isinstance(self._backend, PreparingBackend):
                check_room(self.folder, self._room(missing))
            self._make_all(missing, progress or (lambda done, total, name: None))

    def _make_all(self, names: list[str], progress: Progress) -> None:
        waiting = list(names)

        def done(name: str, _: None) -> None:
            waiting.remove(name)
            progress(len(names) - len(waiting), len(names), waiting[0] if waiting else "")

        progress(0, len(names), names[0])
        # Preparation is mostly the work of one core, and holds what it writes in memory.
        share = available_bytes() / _AT_ONCE
        large = [name for name in names if self._most_room(name) > share]
        run_each(self._make_one, [name for name in names if name not in large], _AT_ONCE, done)
        run_each(self._make_one, large, 1, done)

    def _make_one(self, name: str) -> None:
        sources = self._sources(name)
        self._directory.verify(sources)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))
        try:
            if isinstance(self._backend, PreparingBackend):
                self._write_prepared(self._backend, name, work / self.target(name).name)
            made = sorted(work.iterdir())
            prepared = {path.name: {**stat(path), "sha256": sha256(path)} for path in made}
            # An old stamp must not meet new files.
            self.discard(name)
            for path in made:
                make_way(self.folder / path.name)
                path.replace(self.folder / path.name)
            stamp = {"prepared": prepared, "sources": {file: stat(self._directory.file(file)) for file in sources}}
            _write_atomically(self._stamp(name), json.dumps(stamp))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _write_prepared(self, backend: PreparingBackend, name: str, target: Path) -> None:
        """The prepared form of a component, which opens: a stamp promises that to every later process."""
        with self._without_links(name) as graph:
            for again in (False, True):
                try:
                    backend.prepare(graph, target)
                except BackendError:
                    self._check_disk(name, target.parent)
                    raise
                try:
                    backend.open(target, self._directory.manifest.components[name])
                    return
                except BackendError as error:
                    self._check_disk(name, target.parent)
                    if again:
                        raise BackendError(
                            f"what was prepared of component '{name}' does not open: {error.problem}",
                            "try another release of the library, and report it",
                        ) from None

    def _check_disk(self, name: str, work: Path) -> None:
        """Raise OSError if a library failed because the disk is full: it does not say so, and what it wrote is still
        there."""
        _check_writable(work)
        written = sum(path.stat().st_size for path in work.iterdir())
        check_room(work, self._most_room(name) - written)

    @contextmanager
    def _without_links(self, name: str) -> Iterator[Path]:
        """The graph of a component with its weights beside it. Libraries refuse weights that a link leads elsewhere,
        so files that are links get a second name in this folder meanwhile."""
        sources = self._sources(name)
        if not any(self._directory.file(source).is_symlink() for source in sources):
            yield self._directory.file(sources[0])
            return
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=self.folder) as folder:
            for source in sources:
                path = Path(folder) / source
                path.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self._directory.file(source).resolve(), path)
            yield Path(folder) / sources[0]

    def _remove_abandoned(self) -> None:
        """Remove what killed processes left. Whoever prepares holds the lock, so no folder is in use."""
        for path in self.folder.glob(".*.*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    def _read_stamp(self, name: str) -> dict[str, Any] | None:
        try:
            stat(self._stamp(name))
            stamp = json.loads(self._stamp(name).read_text(encoding="utf-8"))
            known = isinstance(stamp["prepared"], dict) and isinstance(stamp["sources"], dict)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return stamp if known else None

    def _is_unchanged(self, path: Path, record: Mapping[str, Any]) -> bool:
        found = stat(path)
        if found["size"] != record["size"]:
            return False
        if found["mtime_ns"] == record["mtime_ns"] or self._is_verified(path):
            return True
        if sha256(path) != record["sha256"]:
            return False
        self._verified.add(_key(path))
        return True

    def _is_as_recorded(self, source: Path, record: object) -> bool:
        try:
            return record == stat(source) or self._is_verified(source)
        except OSError:
            # Missing, or no file any more: whoever verifies it says so.
            return False

    def _is_verified(self, path: Path) -> bool:
        return _key(path) in self._verified

    def _stamp(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _sources(self, name: str) -> tuple[str, ...]:
        return self._directory.manifest.components[name].files(self._backend.name)

    def _room(self, names: Iterable[str]) -> int:
        """Bytes that prepared forms of components take at least."""
        if not isinstance(self._backend, PreparingBackend):
            return 0
        manifest = self._directory.manifest
        stored = sum(manifest.files[file].size for name in names for file in self._sources(name))
        return int(stored * self._backend.growth(manifest.precision))

    def _most_room(self, name: str) -> int:
        return _MOST_GROWTH * self._room([name])


def stat(path: Path) -> dict[str, Any]:
    """Size and modification time of a file, as stamps have them. Raises OSError if it is not a regular file."""
    info = path.stat()
    if not S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns}


def make_way(path: Path) -> None:
    """Remove what is in the place of a file of the cache and is none: nothing can be renamed to a folder, and reading a
    pipe may never end. Raises OSError if it cannot be removed."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if S_ISDIR(mode):
            shutil.rmtree(path)
        elif not S_ISREG(mode):
            path.unlink()


def check_room(folder: Path, needed: int) -> None:
    """Raise OSError if the disk of a folder has no room for `needed` bytes, and some more."""
    free = shutil.disk_usage(folder).free
    wanted = needed + (64 << 20)
    if free < wanted:
        raise OSError(errno.ENOSPC, f"the disk has {free / 1e9:.2f} GB free, and {wanted / 1e9:.2f} GB are needed")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a second name of a file, or a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        # Another disk, or a file of another user.
        shutil.copyfile(source, target)


def _check_writable(folder: Path) -> None:
    """Raise OSError if nothing can be written to a folder."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(bytes(_PROBE_BYTES))
        os.fsync(probe.fileno())


def _key(path: Path) -> tuple[Path, int, int]:
    info = path.stat()
    return path, info.st_size, info.st_mtime_ns


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        make_way(path)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
