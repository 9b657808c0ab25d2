"""The folder that a user names for an engine: what it may be, and the names beside it that an export needs."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from ebca.engines.contract import manifest as manifests
from ebca.errors import ExportError
from ebca.export import lock

PROGRESS = "progress.json"
"""What is finished of an export. A folder with this file was written by one."""

TRACES = "traces"
"""The folder of graphs that an interrupted export need not trace again."""

HOUSEKEEPING = (PROGRESS, lock.FILE_NAME)


def output_path(named: str | Path) -> Path:
    """The folder that a user names, with `~` as the user's own folder, which a shell leaves as it is in quotes.

    Raises:
        ExportError: there is no such user.
    """
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise ExportError(f"output folder '{named}' cannot be found: {reason}", "name another folder") from None


def partial_folder(output: Path) -> Path:
    """Where an export is written until it is complete. An output that is a link stands for what it points at."""
    place = Path(os.path.realpath(output)) if output.is_symlink() else output
    return place.with_name(place.name + ".partial")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that cannot be written, or that holds something. It changes nothing on disk but what a
    killed export has left in an engine that is complete.

    Raises:
        ExportError: see above.
    """
    try:
        _check_place(output)
        if output.exists():
            remove_housekeeping(output)
            _check_content(output, overwrite=overwrite)
        _check_partial(partial_folder(output))
        _check_parent(output)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = str(output)[:80]
        raise ExportError(f"output folder '{shown}' cannot be used: {reason}", "name another folder") from None


def remove_housekeeping(engine: Path) -> None:
    """Remove what a killed export left in a complete engine, and the engine that it has replaced."""
    if not (engine / manifests.FILE_NAME).is_file() or not (engine / PROGRESS).is_file():
        return
    held = lock.FolderLock.acquire(engine)
    if isinstance(held, int):
        return
    for folder in (engine / TRACES, *replaced(engine)):
        shutil.rmtree(folder, ignore_errors=True)
    held.release()
    # Last, because it is what says that the others may be there.
    (engine / PROGRESS).unlink(missing_ok=True)


def replaced(engine: Path) -> list[Path]:
    """The folders that hold an engine which another was about to replace."""
    name = re.compile(rf"\.{re.escape(engine.name)}\.\d+\.old")
    return [path for path in engine.absolute().parent.iterdir() if name.fullmatch(path.name)]


def check_room(output: Path, needed: int) -> None:
    """Raise ExportError when the disk of `output` has less than `needed` bytes for an export. What an interrupted
    export has written counts as free: it is used again, or deleted."""
    parent = _existing_parent(output)
    written = sum(path.stat().st_size for path in partial_folder(output).rglob("*") if path.is_file())
    free = shutil.disk_usage(parent).free + written
    if free < needed:
        raise ExportError(
            f"no room in '{parent}': this export needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "make room, or name a folder on another disk",
        )


def _check_place(output: Path) -> None:
    if output.name in ("", ".."):
        raise ExportError(f"output folder '{output}' has no name of its own", "name a new folder, such as engine")
    # Names that the file system cannot have raise here, where `exists` may say no.
    with suppress(FileNotFoundError, NotADirectoryError):
        output.lstat()
    if output.is_symlink() and not output.exists():
        raise ExportError(
            f"output '{output}' is a link to '{output.readlink()}', which does not exist", "name a folder"
        )


def _check_content(output: Path, *, overwrite: bool) -> None:
    if not output.is_dir():
        raise ExportError(f"output '{output}' is a file", "name a folder")
    entries = [p.name for p in output.iterdir()]
    if entries and manifests.FILE_NAME not in entries:
        raise ExportError(f"output folder '{output}' holds other files ({entries[0]}, ...)", "name a new folder")
    if entries and not overwrite:
        raise ExportError(f"output folder '{output}' holds an engine already", "pass --overwrite to replace it")


def _check_partial(partial: Path) -> None:
    """What lies there is deleted if it is not of the same export, so it must be of an export."""
    if not partial.is_symlink() and not partial.exists():
        return
    entries = [p.name for p in partial.iterdir()] if partial.is_dir() and not partial.is_symlink() else [""]
    if entries and not {*entries} & {*HOUSEKEEPING}:
        raise ExportError(
            f"'{partial}' is where the export would be written until it is complete, and no export made it",
            "move it away, or name another folder",
        )


def _check_parent(output: Path) -> None:
    parent = _existing_parent(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"output folder '{output}' cannot be made: '{parent}' is not writable", "name another folder")


def _existing_parent(output: Path) -> Path:
    parent = output.absolute().parent
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    return parent
