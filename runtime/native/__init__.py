"""The C++ library `libebca` from Python, through ctypes: its tasks without the rest of this package in the process.

    from ebca.runtime.native import Library

    with Library().open("engine-sd15") as engine, engine.session() as session:
        pixels = session.generate("a lion with a crown", seed=1).pixels

The wheel holds the library if it was built with EBCA_NATIVE=1; docs/embedding.md says how to build it.
"""

from ebca.runtime.native.engine import Engine
from ebca.runtime.native.functions import NativeError
from ebca.runtime.native.library import Library, find_library
from ebca.runtime.native.results import Result, view
from ebca.runtime.native.session import Session

__all__ = ["Engine", "Library", "NativeError", "Result", "Session", "find_library", "view"]
