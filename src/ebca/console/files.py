"""Result files of the command-line tools: checked before anything is computed, written complete or not at all."""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebca.errors import ParameterError
from ebca.result_files import as_parameter_errors, check_writable, mode_of, replacing

Named = tuple[str, Path]
"""A file, after the option that names it."""


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
        check_writable(file, flag)
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
    with as_parameter_errors(path, "the file"):
        mode = mode_of(path)
        if mode is not None and not stat.S_ISREG(mode):
            path.write_text(text, encoding="utf-8")
            return
        with replacing(path) as file:
            file.write(text.encode())


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
