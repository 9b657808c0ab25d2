"""Where buffers live and how a step is replayed.

A device allocates one arena and turns a list of bound calls into something that runs them again and again. On the
CPU that is the list itself.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ebca.engines.backend import Call
from ebca.errors import ParameterError

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load


class Device(Protocol):
    """One kind of memory and execution."""

    name: str

    def arena(self, nbytes: int) -> np.ndarray:
        """Zeroed uint8 buffer of `nbytes`, aligned to ALIGNMENT; lives as long as the array."""
        ...

    def record(self, calls: Sequence[Call]) -> Call:
        """One call that runs all of `calls` in order."""
        ...


class CpuDevice:
    """Host memory; a recorded step is a list of bound calls."""

    name = "cpu"

    def arena(self, nbytes: int) -> np.ndarray:
        raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + nbytes]

    def record(self, calls: Sequence[Call]) -> Call:
        recorded = tuple(calls)

        def replay() -> None:
            for call in recorded:
                call()

        return replay


def create(name: str) -> Device:
    """The named device.

    Raises:
        ParameterError: not a device of this version.
    """
    if name != "cpu":
        raise ParameterError(f"device '{name}' is not available in this version of ebca; use device 'cpu'")
    return CpuDevice()
