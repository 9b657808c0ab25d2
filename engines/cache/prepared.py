"""Prepared forms of components, in the user's cache: rebuildable, verified, bounded.

    <cache>/<key>/           one folder per engine directory, backend and machine, see `ebca.engines.cache.store`

The key covers everything that changes a prepared form: the contents of the component files, the backend, its version
and precision, and the processor. A component is opened without reading its files if sizes and times match its stamp.
Otherwise contents are compared, and a prepared form that fails is made again.

A cache that cannot be written is used as far as it goes. What it lacks is prepared in a temporary folder, with one
notice: containers often have a read-only file system.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ebca.engines.backends.protocol import Backend, PreparingBackend, Runner
from ebca.engines.cache.store import Progress, Store
from ebca.engines.cache.temporary import TemporaryFolder
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.machine import mapped_files
from ebca.engines.machine.cache_folder import cache_folder
from ebca.errors import BackendError, EngineError

# Increase this whenever a backend's `prepare` changes what it writes. The C++ library writes the same folders, keys and
# stamps, so C++ hosts and Python open what either has prepared: change both together.
PREPARED_VERSION = 1

Tell = Callable[[str], None]
"""Gives a notice to the user."""


class PreparedEngine:
    """The components of one engine directory, prepared for one backend on this machine. Use from one thread at a time.

    With a backend that prepares nothing, components are only verified, and opened as they are in the directory.

    Args:
        directory: the engine directory.
        backend: prepares and opens components.
        folder: in the user's cache; None if there is no such cache.
        identity: what the folder's key was made of.
        tell: called once, if components cannot be kept in the cache.

    Attributes:
        folder: as given.
    """

    def __init__(
        self,
        directory: EngineDirectory,
        backend: Backend,
        folder: Path | None,
        identity: Mapping[str, Any],
        tell: Tell = warnings.warn,
    ) -> None:
        self.directory = directory
        self.backend = backend
        self.folder = folder
        self._identity = identity
        self._tell = tell
        self._kept = None if folder is None else Store(directory, backend, folder, identity)
        self._temporary: Store | None = None
        self._temporary_folder: TemporaryFolder | None = None
        # Of a backend that prepares nothing, without a cache.
        self._verified: set[str] = set()
        self._told = False

    def prepare(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Prepare the components that are missing or stale.

        Args:
            names: components.
            progress: called with (done, total, component) for those that have to be prepared.

        Raises:
            EngineError: a source file is corrupted, or neither the cache nor a temporary folder can be written.
            BackendError: a component cannot be prepared.
        """
        missing = [name for name in names if not self._is_ready(name)]
        if not missing:
            return
        try:
            if self._kept is None:
                raise OSError("this user has no home folder")
            self._kept.make(missing, progress)
        except OSError as error:
            self._prepare_elsewhere([name for name in missing if not self._is_ready(name)], progress, error)

    def open(self, name: str, dimensions: Mapping[str, int] | None = None) -> Runner:
        """Open a component, preparing it first if needed. `dimensions` as in `Backend.open`. Raises as `prepare`."""
        self.prepare([name])
        component = self.directory.manifest.components[name]
        if not isinstance(self.backend, PreparingBackend):
            return self.backend.open(self.directory.file(component.graph_for(self.backend.name)), component, dimensions)
        store = self._holder(name)
        assert store is not None
        try:
            return self.backend.open(store.target(name), component, dimensions)
        except BackendError:
            # It opened when it was prepared: it is damaged, for example by a power failure, or whoever prepared it did
            # not try. It is prepared once more.
            pass
        self._discard(store, name)
        self.prepare([name])
        store = self._holder(name)
        assert store is not None
        return self.backend.open(store.target(name), component, dimensions)

    def forget(self, names: Iterable[str]) -> None:
        """Drop the mapped files of components from memory; pages are read again when they are used."""
        names = list(names)
        folders = [store.folder for store in self._stores()]
        mapped_files.forget(*(file for folder in folders for name in names for file in folder.glob(f"{name}.*")))

    def _stores(self) -> list[Store]:
        return [store for store in (self._temporary, self._kept) if store is not None]

    def _holder(self, name: str) -> Store | None:
        """The folder that has a component in its current form."""
        return next((store for store in self._stores() if store.is_current(name)), None)

    def _is_ready(self, name: str) -> bool:
        return name in self._verified or self._holder(name) is not None

    def _discard(self, store: Store, name: str) -> None:
        try:
            store.discard(name)
        except OSError as error:
            # It stays there, and the temporary folder comes first.
            self._prepare_elsewhere([name], None, error)

    def _prepare_elsewhere(self, names: list[str], progress: Progress | None, reason: OSError) -> None:
        """Prepare in a temporary folder what the cache cannot keep, for a reason that the user is told once."""
        where = "the user's cache" if self.folder is None else f"'{self.folder}'"
        remedy = "set EBCA_CACHE_DIR to a writable folder with room"
        problem = f"prepared components cannot be kept in {where} ({reason.strerror or reason})"
        if isinstance(self.backend, PreparingBackend):
            try:
                self._in_temporary_folder().make(names, progress)
            except OSError as error:
                raise EngineError(f"{problem}, nor in a temporary folder ({error.strerror or error})", remedy) from None
            instead = "this process uses a temporary folder, and the next one prepares again"
        else:
            for name in names:
                self.directory.verify(self.directory.manifest.components[name].files(self.backend.name))
            self._verified |= set(names)
            instead = "every process verifies the engine directory again"
        if not self._told:
            self._told = True
            self._tell(f"{problem}: {instead}; {remedy}")

    def _in_temporary_folder(self) -> Store:
        """The store in a temporary folder of this object. Raises OSError if there can be none."""
        if self._temporary is None:
            self._temporary_folder = TemporaryFolder()
            self._temporary = Store(self.directory, self.backend, self._temporary_folder.path, self._identity)
        return self._temporary


def prepared_engine(directory: EngineDirectory, backend: Backend, tell: Tell = warnings.warn) -> PreparedEngine:
    """The prepared components of an engine directory; nothing is prepared yet. `tell`: see `PreparedEngine`."""
    files = {name: record.sha256 for name, record in sorted(directory.manifest.files.items())}
    identity = {"version": PREPARED_VERSION, "backend": backend.name, **backend.identity(), "files": files}
    # Compact JSON, which every library writes the same way.
    spelled = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(spelled.encode()).hexdigest()[:24]
    try:
        folder = cache_folder() / f"{backend.name}-{key}"
    except EngineError:
        return PreparedEngine(directory, backend, None, identity, tell)
    # Records when it was last used.
    with suppress(OSError):
        os.utime(folder)
    return PreparedEngine(directory, backend, folder, identity, tell)
