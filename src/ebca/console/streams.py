"""Standard output and standard error that can be closed, full, or a pipe that nobody reads.

A tool's work is its files. What it prints about them must not end that work, so writing to a guarded stream never
raises. It remembers the first error, and the tool reports it in the end.
"""

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def guarded() -> Iterator["GuardedStream | None"]:
    """Guard the standard streams of this process.

    Yields standard output, or None if there is nothing to guard: a caller has replaced it, or has guarded it already.
    """
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    out = _guard(sys.stdout, sys.__stdout__, 1)
    err = _guard(sys.stderr, sys.__stderr__, 2)
    sys.stdout, sys.stderr = out or sys.stdout, err or sys.stderr
    try:
        yield out
    finally:
        for stream in (out, err):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


class GuardedStream(io.TextIOWrapper):
    """A text stream whose writes never raise. What its encoding lacks is escaped.

    Args:
        descriptor: where to write.
        closed: nothing can be written: the process was started without this descriptor.
        options: as for `io.TextIOWrapper`.
    """

    def __init__(self, descriptor: int, *, closed: bool, **options: Any) -> None:
        self._descriptor = _Descriptor(descriptor, closed)
        raw = self._descriptor if options.get("write_through") else io.BufferedWriter(self._descriptor)
        super().__init__(raw, errors="backslashreplace", **options)  # type: ignore[arg-type]

    @property
    def error(self) -> OSError | None:
        """Why something could not be written; None if everything was."""
        return self._descriptor.error


class _Descriptor(io.RawIOBase):
    def __init__(self, descriptor: int, absent: bool) -> None:
        self._descriptor = descriptor
        self._absent = absent
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return not self._absent and os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self._absent and self.error is None:
            self.error = OSError(errno.EBADF, "it is closed")
        while rest and self.error is None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process has made the terminal or the pipe non-blocking.
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return size


def _guard(stream: TextIO | None, original: TextIO | None, descriptor: int) -> GuardedStream | None:
    if stream is not original:
        return None
    if stream is None:
        return GuardedStream(descriptor, closed=True, encoding="utf-8")
    with suppress(OSError):
        stream.flush()
    return GuardedStream(
        descriptor,
        closed=False,
        encoding=stream.encoding,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _occupy_standard_descriptors() -> None:
    """Open those that are closed: the next file would get their number, and with it what C libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == descriptor:
                os.set_inheritable(null, True)
            else:
                os.dup2(null, descriptor)
                os.close(null)
