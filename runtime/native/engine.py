"""Engines that the C++ library opened."""

from ctypes import byref, c_void_p, sizeof
from types import TracebackType
from typing import Any, Self

from ebca.errors import EngineError
from ebca.runtime.native.functions import Functions
from ebca.runtime.native.session import Session
from ebca.runtime.native.structures import EngineInfo


class Engine:
    """An opened engine directory, shared by threads. It and its sessions may be closed in any order.

    Attributes:
        handle: the ebca_engine*.
    """

    def __init__(self, library: Functions, handle: c_void_p, keep: list[Any]) -> None:
        self.library, self.handle, self._keep = library, handle, keep

    def info(self) -> EngineInfo:
        """What the engine can do; the strings (bytes) belong to it."""
        self._check_open()
        info = EngineInfo(struct_size=sizeof(EngineInfo))
        self.library.check(self.library.lib.ebca_engine_get_info(self.handle, byref(info)))
        return info

    def session(self, height: int = 0, width: int = 0, batch: int = 1) -> Session:
        """A session for images of this size in pixels (0: the size the model was trained at), `batch` per call.

        Raises:
            ParameterError: a size that the engine cannot make.
        """
        self._check_open()
        params = self.library.init("session_params")
        params.height, params.width, params.batch = height, width, batch
        handle = c_void_p()
        self.library.check(self.library.lib.ebca_session_create(self.handle, byref(params), byref(handle)))
        return Session(self.library, handle, self._keep)

    def close(self) -> None:
        """Free the engine. Closing twice is fine."""
        self.library.lib.ebca_engine_free(self.handle)
        self.handle = c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self.handle:
            raise EngineError("this engine is closed", "open it again")
