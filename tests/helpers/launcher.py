"""A driver for kernel launches that launches nothing and records every call."""

import ctypes
from typing import Any

from ebca.plugins.kernels.binaries import KernelSet


class FakeLauncher:
    """Records loads and launches. Parameters are read as the driver reads them: one address per argument."""

    def __init__(self, kernels: KernelSet, capability: tuple[int, int] = (8, 9)) -> None:
        self.kernels, self.capability = kernels, capability
        self.loaded: list[str] = []
        self.launched: list[dict[str, Any]] = []

    def load(self, image: bytes, name: str) -> str:
        assert image[:4] == b"\x7fELF" or image.endswith(b"\0")
        self.loaded.append(name)
        return name

    def launch(
        self,
        function: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        parameters: int,
    ) -> None:
        arguments = self.kernels.arguments[function]
        addresses = (ctypes.c_void_p * len(arguments)).from_address(parameters)
        kinds = {"pointer": ctypes.c_uint64, "int32": ctypes.c_int32, "float32": ctypes.c_float}
        values = {a.name: kinds[a.type].from_address(at).value for a, at in zip(arguments, addresses, strict=True)}
        self.launched.append(
            {"kernel": function, "grid": grid, "block": block, "shared": shared_bytes, "stream": stream, **values}
        )
