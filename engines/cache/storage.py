"""What the cache holds, and keeping it within its bound."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ebca.engines.machine.cache_folder import cache_folder, cache_limit

MARKER = "engine.json"
"""The file that says that a folder of the cache is a prepared engine."""


def evict(keep: Path, limit_bytes: float | None = None) -> list[Path]:
    """Delete the prepared engines unused for longest until the cache is within its bound; never `keep`.

    The bound is `cache_limit` unless given.
    """
    if limit_bytes is None:
        limit_bytes = cache_limit()
    engines = sorted(stored_engines(), key=lambda engine: engine.used)
    total = sum(engine.size for engine in engines)
    removed = []
    for engine in engines:
        # A minute's grace: another process may be preparing it right now.
        if total <= limit_bytes or engine.folder == keep or time.time() - engine.used < 60:
            continue
        shutil.rmtree(engine.folder, ignore_errors=True)
        total -= engine.size
        removed.append(engine.folder)
    return removed


@dataclass(frozen=True)
class StoredEngine:
    """A prepared engine in the cache: its folder, bytes, and when it was last used (seconds since the epoch)."""

    folder: Path
    size: int
    used: float


def stored_engines() -> list[StoredEngine]:
    """What the cache holds, by name. The folder may be shared with others: only what carries our marker is ours."""
    root, found = cache_folder(), []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        # One that is deleted meanwhile is no longer there.
        with suppress(OSError):
            if not path.is_symlink() and (path / MARKER).is_file():
                size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
                found.append(StoredEngine(path, size, path.stat().st_mtime))
    return found
