"""Drop the resident pages of mapped files that are no longer needed."""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
# address permissions offset device inode path
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(.*)")


def forget(*paths: Path) -> int:
    """Drop the resident pages of every unchanged mapping of these files; returns the bytes mapped.

    The kernel reads a page from the file again when it is accessed, so this affects memory and time, never a value.
    Linux only; on other systems it does nothing and returns 0.
    """
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    names, mapped = {str(path.resolve()) for path in paths}, 0
    for start, end, name, written in _mappings(smaps.read_text(errors="surrogateescape")):
        # A page that was written to no longer matches the file: dropping it would lose the change.
        if name in names and not written and madvise(start, end - start, _MADV_DONTNEED) == 0:
            mapped += end - start
    return mapped


def _mappings(smaps: str) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, file, whether a page was written to) of each mapping."""
    found: re.Match[str] | None = None
    for line in smaps.splitlines():
        if line.startswith("Anonymous:") and found:
            yield int(found[1], 16), int(found[2], 16), found[3], line.split()[1] != "0"
        else:
            found = _MAPPING.match(line) or found
