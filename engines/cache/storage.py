"""What the cache holds, and eviction of what exceeds its bound."""

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ebca.engines.cache.locks import try_lock
from ebca.engines.machine.cache_folder import cache_folder, cache_limit
from ebca.errors import EngineError

MARKER = "engine.json"
"""The file that marks a folder of the cache as a prepared engine."""

LOCK = ".lock"
"""The file that is locked while somebody writes there."""

_USE = ".use-"


def evict(keep: Path, limit_bytes: float | None = None, directory: Path | None = None) -> list[Path]:
    """Delete the least recently used engines until a cache is within its bound; never those in use, nor those that a
    process writes. What cannot be deleted stays.

    Args:
        keep: folder of the engine in use; its parent is the cache.
        limit_bytes: the bound; None for `cache_limit()`.
        directory: the engine directory in use, which may lie in the cache too.

    Returns:
        The deleted folders.
    """
    if limit_bytes is None:
        limit_bytes = cache_limit()
    engines = sorted(stored_engines(keep.parent), key=lambda engine: engine.used)
    total = sum(engine.size for engine in engines)
    removed = []
    for engine in engines:
        # Another process may be preparing an engine that was used less than a minute ago.
        if total <= limit_bytes or engine.folder in (keep, directory) or time.time() - engine.used < 60:
            continue
        if _is_in_use(engine.folder):
            continue
        shutil.rmtree(engine.folder, ignore_errors=True)
        if not engine.folder.exists():
            total -= engine.size
            removed.append(engine.folder)
    return removed


def _is_in_use(folder: Path) -> bool:
    """Whether a process writes there, or has files open that it could not get again (the C++ library: eviction.cpp)."""
    for file in (folder / LOCK, *folder.glob(f"{_USE}*")):
        with suppress(OSError):
            if not file.is_file():
                continue
            descriptor = try_lock(file)
            if descriptor is None:
                return True
            os.close(descriptor)
    return False


@dataclass(frozen=True)
class StoredEngine:
    """A prepared or derived engine in the cache: its folder, bytes, and when it was last used (seconds since the
    epoch). A file with several names counts as a part for each."""

    folder: Path
    size: int
    used: float


def stored_engines(root: Path | None = None) -> list[StoredEngine]:
    """The prepared and derived engines in a cache, by name. It may be shared: only folders with our marker count.

    Args:
        root: the cache; None for the user's. One that does not exist or cannot be read holds nothing.
    """
    paths: list[Path] = []
    with suppress(OSError, EngineError):
        paths = sorted((cache_folder() if root is None else root).iterdir())
    found = []
    for path in paths:
        # Another process may delete it meanwhile.
        with suppress(OSError):
            if not path.is_symlink() and (path / MARKER).is_file():
                files = [f.stat() for f in path.rglob("*") if f.is_file()]
                size = sum(info.st_size // max(1, info.st_nlink) for info in files)
                found.append(StoredEngine(path, size, path.stat().st_mtime))
    return found
