"""Folders for what cannot be kept in the user's cache.

They are removed when they are no longer used, at the latest when the process ends. What a killed process leaves behind
is removed by the next one that needs such a folder.
"""

import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

from ebca.engines.cache.locks import try_lock

_PREFIX = "ebca-prepared-"
_ALIVE = ".alive"
# A folder without a lock file may be about to get one.
_YOUNG_SECONDS = 60.0


class TemporaryFolder:
    """A folder in the system's folder for temporary files.

    Attributes:
        path: the folder, which only this user can read.

    Raises:
        OSError: there is no writable folder for temporary files.
    """

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        weakref.finalize(self, _remove, self.path, try_lock(self.path / _ALIVE), os.getpid())


def _remove(folder: Path, alive: int | None, owner: int) -> None:
    if os.getpid() != owner:
        # A forked child: the folder is its parent's.
        return
    shutil.rmtree(folder, ignore_errors=True)
    if alive is not None:
        os.close(alive)


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's folders whose process has ended."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            info = folder.lstat()
            mine = not hasattr(os, "getuid") or info.st_uid == os.getuid()
            if folder.is_symlink() or not mine or time.time() - info.st_mtime < _YOUNG_SECONDS:
                continue
            descriptor = try_lock(folder / _ALIVE)
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)
