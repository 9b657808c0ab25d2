"""The files of an engine directory. Where they may be, and that they are regular files, is decided here alone.

A path in the manifest is relative and stays below the directory. Any file, `manifest.json` too, may be a link: where it
leads does not matter, since size and digest decide whether it is used.
"""

import hashlib
import os
import stat
from pathlib import Path

from ebca.engines.contract import limits
from ebca.errors import EngineError

_CHUNK = 1 << 22


def check_path(path: str) -> None:
    """Raise EngineError unless a path of the manifest is relative, without `.` and `..`, and the same everywhere."""
    outside = path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/"))
    if outside or any(character in path for character in "\\:\0"):
        raise EngineError(
            f"the manifest names '{path}', which is outside the engine directory", "export the engine again"
        )
    if len(path.encode()) > limits.PATH_BYTES:
        raise EngineError(f"the manifest names '{path[:60]}...', a path of more than {limits.PATH_BYTES} bytes")


def size(path: Path) -> int:
    """Bytes of a regular file, or of the one that a link leads to. Raises EngineError if there is none."""
    try:
        found = path.stat()
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except (OSError, ValueError):
        raise _missing(path, "a link to a file that is not there" if os.path.lexists(path) else "missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise _missing(path, f"{_kind(found.st_mode)} instead of a file")
    return found.st_size


def read(path: Path, limit: int = limits.MANIFEST_BYTES) -> bytes:
    """The contents of a regular file of at most `limit` bytes. Raises EngineError if it cannot be read."""
    found = size(path)
    if found > limit:
        raise EngineError(f"'{path}' has {found} bytes, more than any that ebca writes", "export the engine again")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def digest(path: Path) -> str:
    """`sha256` of a file of an engine directory. Raises EngineError if it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's contents. Raises OSError if it cannot be read."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _kind(mode: int) -> str:
    return "a directory" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"


def _missing(path: Path, what: str) -> EngineError:
    return EngineError(f"'{path}' is {what}", "copy the whole engine directory or export it again")


def _unreadable(path: Path, error: OSError) -> EngineError:
    return EngineError(f"'{path}' cannot be read: {error.strerror or error}", "check its permissions")
