"""Copies a file with parts of it replaced, in one pass that also checks what is read and what is written."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ebca.engines.contract.entries import FileRecord
from ebca.errors import EngineError

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Replacement:
    """`length` bytes from `offset` on, and what makes others of them; as many or more."""

    offset: int
    length: int
    make: Callable[[bytes], bytes]


def rewrite(source: Path, expected: FileRecord, target: Path, replacements: Sequence[Replacement]) -> FileRecord:
    """Write `target` as a copy of `source` with replacements, which do not overlap. Returns its record.

    Memory is that of the largest replacement.

    Raises:
        EngineError: the source is not what the manifest says; the target is removed.
        OSError: it cannot be read or written.
    """
    before, after, size = hashlib.sha256(), hashlib.sha256(), 0
    try:
        with source.open("rb") as reading, target.open("wb") as writing:

            def put(data: bytes) -> None:
                nonlocal size
                after.update(data)
                writing.write(data)
                size += len(data)

            for replacement in sorted(replacements, key=lambda one: one.offset):
                _copy(reading.read, replacement.offset - reading.tell(), before, put)
                old = reading.read(replacement.length)
                before.update(old)
                if len(old) != replacement.length:
                    break
                put(replacement.make(old))
            _copy(reading.read, None, before, put)
        if before.hexdigest() != expected.sha256:
            raise EngineError(
                f"'{source}' is corrupted: its contents are not what was exported", "export the engine again"
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return FileRecord(size, after.hexdigest())


def _copy(
    read: Callable[[int], bytes], count: int | None, digest: "hashlib._Hash", put: Callable[[bytes], None]
) -> None:
    """Copy `count` bytes, or all that are left."""
    while count is None or count > 0:
        data = read(_CHUNK if count is None else min(_CHUNK, count))
        if not data:
            return
        digest.update(data)
        put(data)
        if count is not None:
            count -= len(data)
