"""Locks between processes, on files. The system releases them when a process ends, however it ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: work may be done twice there, which is harmless.
    fcntl = None  # type: ignore[assignment]

WAIT_SECONDS = 600.0
"""How long one process may prepare before others stop waiting for it."""

_TICK_SECONDS = 0.05


def try_lock(path: Path) -> int | None:
    """Lock a file, which is made if it is missing, without waiting. Close the descriptor to release it.

    Returns:
        The descriptor; None if another process, or another thread of this one, holds the lock.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        # A file system without locks: the work may be done twice.
        pass
    return descriptor


@contextmanager
def locked(path: Path, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the lock of a file.

    Args:
        path: the file, which is made if it is missing.
        wait_seconds: how long to wait for another holder; None: WAIT_SECONDS.

    Raises:
        TimeoutError: it is held for longer than that, for example by a process that was stopped.
        OSError: the file cannot be made.
    """
    limit = WAIT_SECONDS if wait_seconds is None else wait_seconds
    end = time.monotonic() + limit
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() >= end:
            raise TimeoutError(f"another process has been preparing there for {limit:.0f} s")
        time.sleep(_TICK_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)
