"""Files that results are written to: checked before anything is computed, written completely or not at all."""

import errno
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ebca.errors import ParameterError

_REMEDIES = {
    errno.ENOSPC: "free some space, or name a file on another disk",
    errno.EDQUOT: "free some space, or name a file on another disk",
    errno.ENAMETOOLONG: "shorten its name",
}


def check_writable(path: Path, what: str) -> None:
    """Raise ParameterError unless `replacing` can write this file; `what` names it. Its folder may be missing.

    Nothing is left behind.
    """
    made: list[Path] = []
    try:
        with as_parameter_errors(path, what):
            folder = path.absolute().parent
            for parent in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
                # "new/.." exists as soon as "new" does.
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
            mode = mode_of(path)
            if mode is not None and stat.S_ISDIR(mode):
                raise ParameterError(f"{what} '{path}' is a folder", "name a file")
            if mode is not None and not stat.S_ISREG(mode):
                raise ParameterError(f"{what} '{path}' is a device or a pipe", "name a file")
            probe = _beside(path)
            probe.touch(exist_ok=False)
            probe.unlink()
    finally:
        for parent in reversed(made):
            parent.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` if the block ends without an error; else nothing is left.

    Folders that are missing are created.

    Raises:
        ParameterError: the file cannot be written.
    """
    with as_parameter_errors(path, "the file"):
        if path.is_dir():
            raise ParameterError(f"the file '{path}' is a folder", "name a file")
        _make_folder(path.parent)
        temporary = _beside(path)
        try:
            with temporary.open("xb") as file:
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def as_parameter_errors(path: Path, what: str) -> Iterator[None]:
    """Errors of the file system, and of libraries that write files, as one line; `what` names the file."""
    try:
        yield
    except ParameterError:
        raise
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        remedy = _REMEDIES.get(number or 0, "name a file in a writable folder")
        raise ParameterError(f"{what} '{path}' cannot be written: {reason_of(error)}", remedy) from None


def mode_of(path: Path) -> int | None:
    """What kind of file a name is, as in `os.stat`; None if it does not exist."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def reason_of(error: Exception) -> str:
    """The system's text of an error, without the file's name."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _beside(path: Path) -> Path:
    """A new file name in the same folder, of a length that every file system takes."""
    return path.absolute().with_name(f".ebca-{secrets.token_hex(8)}.tmp")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory") from None
