"""Result files of the command-line tools: checked before anything is computed, written complete or not at all."""

import errno
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebca.errors import ParameterError

Named = tuple[str, Path]
"""A file, after the option that names it."""

_REMEDY = "name a file in a writable folder"


def check_results(results: Sequence[Named], inputs: Sequence[Named] = ()) -> None:
    """Check that every result file can be written, and that none is another one or an input. Leaves nothing behind.

    Folders that do not exist will be created. Files that exist will be replaced.

    Args:
        results: files to write.
        inputs: files that are read.

    Raises:
        ParameterError: one of these is not so.
    """
    taken = {key: (flag, file) for flag, file in inputs for key in _identities(file)}
    folders: dict[str, Named] = {}
    for flag, file in results:
        check_result(flag, file)
        keys = _identities(file)
        for key in keys:
            if key in taken:
                raise _same(flag, file, *taken[key])
        taken |= dict.fromkeys(keys, (flag, file))
        folders |= {str(parent): (flag, file) for parent in Path(keys[0]).parents}
    for flag, file in results:
        inside = folders.get(_identities(file)[0])
        if inside is not None:
            raise ParameterError(f"{inside[0]} '{inside[1]}' would lie in the file of {flag}", "name another file")


def check_result(flag: str, file: Path) -> None:
    """Raise ParameterError unless a file can be written. Its folder may be missing. Leaves nothing behind."""
    made: list[Path] = []
    try:
        folder = file.absolute().parent
        for parent in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
            # "new/.." exists as soon as "new" does.
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
        mode = _mode(file)
        if mode is not None and stat.S_ISDIR(mode):
            raise ParameterError(f"{flag} '{file}' is a folder", "name a file")
        if mode is not None and not stat.S_ISREG(mode):
            raise ParameterError(f"{flag} '{file}' is a device or a pipe", "name a file")
        probe = _beside(file)
        probe.touch(exist_ok=False)
        probe.unlink()
    except ParameterError:
        raise
    except (OSError, ValueError) as error:
        raise _unwritable(f"{flag} '{file}'", error) from None
    finally:
        for parent in reversed(made):
            parent.rmdir()


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented JSON. Folders that are missing are created.

    Raises:
        ParameterError: the file cannot be written.
    """
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8. The file is replaced when the text is complete; a device or a pipe gets it directly.

    Raises:
        ParameterError: the file cannot be written.
    """
    path = Path(path)
    try:
        folder = path.absolute().parent
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            path.write_text(text, encoding="utf-8")
            return
        temporary = _beside(path)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(f"the file '{path}'", error) from None


def _mode(file: Path) -> int | None:
    """What kind of file a name is, as in `os.stat`; None if it does not exist."""
    try:
        return file.stat().st_mode
    except FileNotFoundError:
        return None


def _beside(file: Path) -> Path:
    """A new name in the same folder, of a length that every file system takes."""
    return file.absolute().with_name(f".ebca-{secrets.token_hex(8)}.tmp")


def _identities(file: Path) -> list[str]:
    """What two names of one file have in common: the path without links, and for files that exist the number."""
    real = os.path.realpath(file)
    try:
        found = Path(real).stat()
    except OSError:
        return [real]
    return [real, f"{found.st_dev}:{found.st_ino}"]


def _same(flag: str, file: Path, other_flag: str, other: Path) -> ParameterError:
    return ParameterError(f"{flag} '{file}' is the same file as {other_flag} '{other}'", "name another file")


def _unwritable(what: str, error: Exception) -> ParameterError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    remedy = "shorten its name" if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG else _REMEDY
    return ParameterError(f"{what} cannot be written: {reason}", remedy)
