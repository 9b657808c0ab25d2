"""Several arrays one after the other in one piece of memory."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ebca.engines.machine.memory import nbytes
from ebca.runtime.devices.device import ALIGNMENT, Memory

_WORD = np.dtype(np.int32)


class Block:
    """Arrays of given shapes and dtypes, each aligned to ALIGNMENT.

    Args:
        arrays: shape and dtype by name, in the order that they have in memory.
        allocate: allocates memory of a size in bytes.

    Attributes:
        arrays: the arrays by name.
        offsets: where each begins, in bytes.
        words: all of the memory as int32 [size / 4].
    """

    def __init__(
        self, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], allocate: Callable[[int], Memory]
    ) -> None:
        self.offsets: dict[str, int] = {}
        total = 0
        for name, (shape, dtype) in arrays.items():
            self.offsets[name] = total
            total += -(-nbytes(shape, dtype) // ALIGNMENT) * ALIGNMENT
        self.arrays: dict[str, Any] = {}
        self.words: Any = None
        if arrays:
            memory = allocate(total)
            self.arrays = {name: memory.view(self.offsets[name], *spec) for name, spec in arrays.items()}
            self.words = memory.view(0, (total // _WORD.itemsize,), _WORD)
