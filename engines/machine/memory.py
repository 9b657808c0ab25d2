"""Arrays in device memory, as an address with a shape."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A C-contiguous array on a device.

    Attributes:
        pointer: device address in bytes.
        shape, dtype: as in numpy.
        owner: keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object = field(repr=False, default=None)

    @property
    def nbytes(self) -> int:
        return nbytes(self.shape, self.dtype)


def address(array: "np.ndarray | DeviceArray") -> int:
    """The address of an array in host or device memory."""
    return array.pointer if isinstance(array, DeviceArray) else int(array.ctypes.data)


def nbytes(shape: Sequence[int], dtype: Any) -> int:
    """Size of a C-contiguous array in bytes."""
    # In Python's integers: absurd sizes must not wrap around.
    return math.prod(int(side) for side in shape) * np.dtype(dtype).itemsize
