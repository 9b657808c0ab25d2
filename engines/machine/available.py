"""How much memory this process could have: of the machine, of its container, and of its own limits."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# What version 1 shows where there is no limit.
_UNLIMITED = 1 << 60


def available_bytes() -> int:
    """Memory that this process can have for one call, in bytes, at most.

    That is what the machine has available, with swap, within the limits of the process's control groups (containers)
    and of RLIMIT_AS (`ulimit -v`); and what the process itself holds, which it may use again. Where the system extends
    its swap by itself (macOS, Windows), all memory counts as available.
    """
    own = psutil.Process().memory_info()
    # Memory of its own, without pages of files: those are part of what the machine has available.
    held = own.rss - getattr(own, "shared", 0)
    rooms = [_of_machine(), *_of_cgroups()]
    with suppress(ImportError, OSError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            rooms.append(limit - own.vms)
    return max(min(rooms) + held, 0)


def _of_machine() -> int:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    if sys.platform == "linux":
        return int(memory.available + swap.free)
    return int(memory.total + swap.total)


def _of_cgroups() -> list[int]:
    """What each control group above this process leaves, in bytes; none on systems without them."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            rooms += [room for folder in _above(_CGROUPS, own) if (room := _room_2(folder)) is not None]
        elif "memory" in controllers.split(","):
            folders = _above(_CGROUPS / "memory", own)
            rooms += [room for folder in folders if (room := _room_1(folder)) is not None]
    return rooms


def _above(root: Path, own: str) -> list[Path]:
    """The folders of a group and of those above it. In a container the root is often its own group already."""
    folder = root / own.lstrip("/")
    return [path for path in (folder, *folder.parents) if path == root or path.is_relative_to(root)]


def _room_2(folder: Path) -> int | None:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    swap, swapped = _number(folder / "memory.swap.max"), _number(folder / "memory.swap.current")
    machine = int(psutil.swap_memory().free)
    return (
        limit - used + _file_pages(folder) + (machine if swap is None else min(max(swap - (swapped or 0), 0), machine))
    )


def _room_1(folder: Path) -> int | None:
    limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= _UNLIMITED:
        return None
    return limit - used + _file_pages(folder) + int(psutil.swap_memory().free)


def _file_pages(folder: Path) -> int:
    """Pages of files, which count as used, and which the system drops when memory is short."""
    found = 0
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "active_file"):
                found += int(value)
    return found


def _number(file: Path) -> int | None:
    """The number in a file; None for "max", and if there is no such file."""
    with suppress(OSError, ValueError):
        return int(file.read_text(encoding="utf-8"))
    return None
