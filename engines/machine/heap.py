"""Give freed memory back to the system."""

import ctypes
import sys
from contextlib import suppress


def trim() -> None:
    """Give back what the C library keeps of freed memory. Linux with glibc only; elsewhere it does nothing.

    ONNX Runtime packs every weight again when a component is opened, and frees the result where the prepared file has
    it. The holes lie between small blocks that stay: a gigabyte for 72 segments of Stable Diffusion XL.
    """
    if sys.platform == "linux":
        # musl has no such function.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
