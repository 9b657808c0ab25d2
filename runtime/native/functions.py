"""The functions of a loaded libebca, and their errors."""

import ctypes
from ctypes import byref, c_char_p, c_double, c_size_t, c_void_p, sizeof
from pathlib import Path
from typing import Any

from ebca.errors import BackendError, EbcaError
from ebca.runtime.native.structures import ABI_VERSION, ERRORS, PARAMS, DeviceInfo, Status


class NativeError(EbcaError):
    """An error of the library that has no class in `ebca.errors`.

    Attributes:
        status: its Status: UNSUPPORTED, OUT_OF_MEMORY or INTERNAL.
    """

    def __init__(self, status: int, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.status = Status(status)


class Functions:
    """The functions of ebca.h in one library file.

    Attributes:
        path: of the library.
        lib: its functions, with their types.

    Raises:
        BackendError: the library cannot be loaded, or is for another version of the binary interface.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.lib = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise BackendError(
                f"the C++ library '{self.path}' cannot be loaded: {error}", "name another one in EBCA_CPP_LIB"
            ) from None
        found = self.lib.ebca_abi_version() if hasattr(self.lib, "ebca_abi_version") else "unknown"
        if found != ABI_VERSION:
            raise BackendError(
                f"the binary interface of the C++ library '{self.path}' has version {found}, this package needs "
                f"{ABI_VERSION}",
                "build it from the sources of this package, or name another one in EBCA_CPP_LIB",
            )
        _declare(self.lib)

    @property
    def version(self) -> str:
        return str(self.lib.ebca_version().decode())

    def init(self, name: str) -> Any:
        """A struct of `structures.PARAMS` with its defaults."""
        params = PARAMS[name]()
        getattr(self.lib, f"ebca_{name}_init")(byref(params), sizeof(params))
        return params

    def last_error(self) -> str:
        """Text of this thread's last error; "" after a success."""
        return str(self.lib.ebca_last_error().decode())

    def devices(self) -> list[DeviceInfo]:
        """The CPU, then the GPUs; without an NVIDIA driver the CPU alone. Texts are bytes."""
        count = c_size_t()
        self.check(self.lib.ebca_device_count(byref(count)))
        made = [DeviceInfo(struct_size=sizeof(DeviceInfo)) for _ in range(count.value)]
        for index, info in enumerate(made):
            self.check(self.lib.ebca_device_get_info(index, byref(info)))
        return made

    def check(self, status: int) -> None:
        """Raise the error of a status that is not OK, with this thread's problem and remedy."""
        if status == Status.OK:
            return
        problem, remedy = self.lib.ebca_last_problem().decode(), self.lib.ebca_last_remedy().decode()
        raise ERRORS[status](problem, remedy) if status in ERRORS else NativeError(status, problem, remedy)


def _declare(lib: ctypes.CDLL) -> None:
    """Types of the functions, without which ctypes would cut pointers to 32 bits."""
    texts = [
        f"ebca{owner}_last_{what}" for owner in ("", "_engine", "_session") for what in ("error", "problem", "remedy")
    ]
    for name in ("ebca_version", *texts):
        getattr(lib, name).restype = c_char_p
    for name in texts[3:]:
        getattr(lib, name).argtypes = [c_void_p]
    for kind in ("engine", "session", "result"):
        free = getattr(lib, f"ebca_{kind}_free")
        free.argtypes, free.restype = [c_void_p], None
    for params in PARAMS:
        init = getattr(lib, f"ebca_{params}_init")
        init.argtypes, init.restype = [c_void_p, c_size_t], None
    for name in ("session_create", "session_generate", "session_invert", "session_denoise"):
        getattr(lib, f"ebca_{name}").argtypes = [c_void_p, c_void_p, c_void_p]
    lib.ebca_device_count.argtypes = [c_void_p]
    lib.ebca_device_get_info.argtypes = [c_size_t, c_void_p]
    lib.ebca_engine_get_info.argtypes = [c_void_p, c_void_p]
    for name in ("encode_prompt", "encode_images", "decode"):
        getattr(lib, f"ebca_engine_{name}").argtypes = [c_void_p, c_void_p, c_void_p]
    lib.ebca_engine_preview.argtypes = [c_void_p, c_void_p, c_double, c_void_p]
    lib.ebca_result_to_gpu.argtypes = [c_void_p, c_void_p]
    lib.ebca_session_cancel.argtypes = [c_void_p]
    lib.ebca_session_reset_cancel.argtypes = [c_void_p]
