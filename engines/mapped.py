"""Pages of mapped files that nobody needs in memory any more."""

import ctypes
from pathlib import Path

_MADV_DONTNEED = 4


def forget(path: Path) -> int:
    """Drop the resident pages of every read-only mapping of `path` in this process; returns the bytes mapped.

    The kernel reads a page from the file again when it is touched, so this changes memory and time, never a value.
    Linux only; elsewhere it does nothing and returns 0.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    name, mapped = str(path.resolve()), 0
    for line in maps.read_text(errors="surrogateescape").splitlines():
        # address permissions offset device inode path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == name and fields[1].startswith("r-"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            if madvise(start, end - start, _MADV_DONTNEED) == 0:
                mapped += end - start
    return mapped
