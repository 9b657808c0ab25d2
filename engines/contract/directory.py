"""An engine directory on disk: its manifest, and whether its files are unchanged since the export."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ebca.engines.contract import files
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.files import sha256
from ebca.engines.contract.manifest import Manifest
from ebca.errors import EngineError, ParameterError

__all__ = ["BUNDLED", "EngineDirectory", "bundled", "open_directory", "sha256"]

BUNDLED = Path(__file__).parents[1] / "bundled"


@dataclass(frozen=True)
class EngineDirectory:
    """A directory with a valid manifest, whose files all exist with the right size.

    `verify` and `read` check contents. No file is used before one of them has seen it: see
    `ebca.engines.cache.prepared` for graphs and weights.
    """

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name

    def verify(self, names: Iterable[str] | None = None, progress: Callable[[str], None] | None = None) -> None:
        """Compare contents with the manifest.

        Args:
            names: files to check; all when None.
            progress: called with each file's name before it is read.

        Raises:
            EngineError: a file is missing, truncated or changed; the message names it.
        """
        for name in self.manifest.files if names is None else names:
            if progress:
                progress(name)
            self.check_size(name)
            self._check_digest(name, files.digest(self.file(name)))

    def read(self, name: str) -> bytes:
        """The contents of a file that fits into memory. Raises EngineError as `verify`."""
        self.check_size(name)
        contents = files.read(self.file(name))
        self._check_digest(name, hashlib.sha256(contents).hexdigest())
        return contents

    def check_size(self, name: str) -> None:
        """Raise EngineError if a file is missing, is not a regular file, or differs in size from the manifest."""
        path, expected = self.file(name), self.manifest.files[name].size
        size = files.size(path)
        if size != expected:
            raise EngineError(
                f"'{path}' has {size} bytes instead of {expected}: truncated or changed", "export the engine again"
            )

    def _check_digest(self, name: str, found: str) -> None:
        if found != self.manifest.files[name].sha256:
            raise EngineError(
                f"'{self.file(name)}' is corrupted: its contents are not what was exported", "export the engine again"
            )


def open_directory(engine: str | Path) -> EngineDirectory:
    """Open a directory, or a bundled engine by name.

    Raises:
        EngineError: the directory does not exist or is not a complete engine directory.
        ParameterError: not a path or a name.
    """
    if not isinstance(engine, str | os.PathLike):
        raise ParameterError(f"engine is {engine!r}"[:200], "give an engine directory, or the name of a bundled engine")
    path = Path(engine)
    # Path.exists raises an exception for a name that is too long.
    if not os.path.exists(path):  # noqa: PTH110
        if str(engine) not in bundled():
            names = f" or use a bundled one: {', '.join(bundled())}" if bundled() else ""
            raise EngineError(
                f"engine directory '{path}' does not exist", f"make one with `ebca-export --output-dir`{names}"
            )
        path = BUNDLED / str(engine)
    manifest = manifests.read(path)
    # Files are opened when they are first needed: the process may be in another folder by then.
    directory = EngineDirectory(path.absolute(), manifest)
    for name in directory.manifest.files:
        directory.check_size(name)
    return directory


def bundled() -> list[str]:
    """Names of the engine directories that come with this package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{manifests.FILE_NAME}"))
