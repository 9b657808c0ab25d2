"""Finding and loading the C++ library, and opening engines with it."""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

from ebca.errors import BackendError
from ebca.runtime.native.engine import Engine
from ebca.runtime.native.functions import Functions
from ebca.runtime.native.structures import LogCallback, PrepareCallback, ReadCallback

_NAME = "libebca.so"

OnPrepare = Callable[[int, int, str], None]
"""Called with (done, total, component) before a component is prepared, and once at the end."""

Log = Callable[[int, str], None]
"""Called with a LogLevel and a message."""

Read = Callable[[str, int, int], bytes | None]
"""Called with a file of the engine directory, an offset and a size: at most so many bytes, none at the end of the file;
None if there is no such file."""


def find_library() -> Path:
    """The file that EBCA_CPP_LIB names, or the one in this package's wheel.

    Raises:
        BackendError: neither exists.
    """
    bundled = Path(__file__).parents[2] / "_native" / "lib" / _NAME
    named = os.environ.get("EBCA_CPP_LIB")
    path = Path(named) if named else bundled
    if not path.is_file():
        raise BackendError(
            f"the C++ library '{path}' does not exist",
            "install a wheel built with EBCA_NATIVE=1, or name the library in EBCA_CPP_LIB (docs/embedding.md)",
        )
    return path


def find_onnxruntime() -> Path | None:
    """The library inside the package `onnxruntime`; None if it is not installed or has none."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "capi").glob("libonnxruntime.so*")):
            return path
    return None


class Library(Functions):
    """The loaded library. Its functions may be called from several threads.

    Args:
        path: of libebca.so; None: `find_library`.
        onnxruntime: of libonnxruntime.so; None: EBCA_ORT_LIB, then the package `onnxruntime`, then the loader's search.

    Raises:
        BackendError: the library is missing or cannot be loaded.
    """

    def __init__(self, path: Path | str | None = None, onnxruntime: Path | str | None = None) -> None:
        super().__init__(find_library() if path is None else path)
        if onnxruntime is None and not os.environ.get("EBCA_ORT_LIB"):
            onnxruntime = find_onnxruntime()
        self.onnxruntime = None if onnxruntime is None else Path(onnxruntime)

    def open(
        self,
        path: Path | str | None = None,
        *,
        read: Read | None = None,
        device: str = "cpu",
        cache: Path | str | None = None,
        threads: int = 0,
        onnxruntime: Path | str | None = None,
        backend: str | None = None,
        precision: str | None = None,
        openvino: Path | str | None = None,
        on_prepare: OnPrepare | None = None,
        log: Log | None = None,
    ) -> Engine:
        """Open an engine directory. The first call on a machine prepares it, which can take a minute.

        Args:
            path: the engine directory, or
            read: gives its files from an archive or from memory, in this thread and only during this call.
            device: "cpu", "cuda" or "cuda:1".
            cache: folder for prepared engines; None: EBCA_CACHE_DIR, then the user's cache folder.
            threads: per graph; 0: one per physical core.
            onnxruntime: libonnxruntime.so, if another than this library's.
            backend: "onnxruntime" or "openvino"; None: the one for the precision.
            precision: "fp32" or "bf16"; None: fp32.
            openvino: libopenvino_c.so; None: EBCA_OPENVINO_LIB, then the loader's search.
            on_prepare: observes the preparation; must not open the same directory.
            log: receives warnings, from any thread that uses the engine.

        Raises:
            ParameterError, EngineError, BackendError, NativeError: from the library.
            Exception: what `read` raised.
        """
        params = self.init("engine_params")
        keep: list[Any] = []
        onnxruntime = onnxruntime or self.onnxruntime
        params.device, params.threads = device.encode(), threads
        params.path = None if path is None else _path(path)
        raised: list[BaseException] = []
        if read is not None:
            params.read = _read_callback(read, raised)
        params.onnxruntime_library = None if onnxruntime is None else _path(onnxruntime)
        params.cache_dir = None if cache is None else _path(cache)
        params.backend = None if backend is None else backend.encode()
        params.precision = None if precision is None else precision.encode()
        params.openvino_library = None if openvino is None else _path(openvino)
        if on_prepare is not None:
            prepare = on_prepare
            params.on_prepare = PrepareCallback(lambda done, total, name, _: prepare(done, total, name.decode()))
            keep.append(params.on_prepare)
        if log is not None:
            write = log
            params.log = LogCallback(lambda level, message, _: write(level, message.decode()))
            keep.append(params.log)
        handle = c_void_p()
        status = self.lib.ebca_engine_open(byref(params), byref(handle))
        if raised:
            raise raised[0]
        self.check(status)
        return Engine(self, handle, keep)


def _path(path: Path | str) -> bytes:
    return os.fsencode(path)


def _read_callback(read: Read, raised: list[BaseException]) -> Any:
    """A function of C; what `read` raises is kept, and the library told that it cannot read."""

    def call(file: bytes, offset: int, buffer: int, size: int, _: Any) -> int:
        try:
            found = read(file.decode(), offset, size)
            if found is None:
                return -1
            ctypes.memmove(buffer, found, min(len(found), size))
            return len(found)
        except BaseException as error:
            raised.append(error)
            return -1

    return ReadCallback(call)
