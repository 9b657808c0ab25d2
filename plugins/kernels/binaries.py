"""The compiled kernels as data: which binary serves a call, and how to launch it. Needs only numpy.

Everything comes from `manifest.json` beside the binaries; energy_attention/README.md describes its keys. Nothing here
depends on Triton or CUDA.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np

from ebca.errors import BackendError, ParameterError

FOLDER: Final = Path(__file__).parent / "compiled"
FORMAT: Final = ("ebca-kernels", 1)
DTYPES: Final = ("float16", "bfloat16")
"""Storage types of q, k, v and out. The other tensors are float32."""

Capability = tuple[int, int]
"""Compute capability, (8, 9) for 8.9."""

_CODES: Final = {"pointer": "Q", "int32": "i", "float32": "f"}
_SCALARS: Final = {"pointer": np.uint64, "int32": np.int32, "float32": np.float32}


class Argument(NamedTuple):
    """One kernel parameter: name, "pointer", "int32" or "float32", and its byte offset in the parameter buffer."""

    name: str
    type: str
    offset: int


@dataclass(frozen=True)
class Binary:
    """One compiled kernel, for one compute capability (format "cubin"), or for it and all higher ones (format
    "ptx")."""

    kernel: str
    format: str
    capability: Capability
    dtype: str | None  # None: serves every dtype
    head_dims: tuple[int, int]  # smallest and largest
    unit: int  # head_dim and strides are multiples of it
    positions_from: int
    constants: Mapping[str, int]
    num_warps: int
    shared_bytes: int  # dynamic shared memory to ask for at launch
    registers: int
    stack_bytes: int
    offset: int
    size: int

    @property
    def block(self) -> tuple[int, int, int]:
        return (32 * self.num_warps, 1, 1)


@dataclass(frozen=True)
class KernelLaunch:
    """One launch: the binary, its grid, and every argument. Pointers are names of tensors until `pack`."""

    binary: Binary
    arguments: tuple[Argument, ...]
    grid: tuple[int, int, int]
    values: Mapping[str, int | float | str]  # a string is the name of a tensor

    def pack(self, pointers: Mapping[str, int]) -> bytes:
        """The parameter buffer: each argument in little-endian order at its offset. Raises as `scalars`."""
        end = self.arguments[-1]
        packed = bytearray(end.offset + struct.calcsize(_CODES[end.type]))
        for argument, value in zip(self.arguments, self._resolve(pointers), strict=True):
            struct.pack_into("<" + _CODES[argument.type], packed, argument.offset, value)
        return bytes(packed)

    def scalars(self, pointers: Mapping[str, int]) -> tuple[Any, ...]:
        """The arguments as numpy scalars, for launchers that take typed values one by one (cuda-core).

        Raises ParameterError for a tensor without a device address in `pointers`, or not aligned to 16 bytes.
        """
        values = self._resolve(pointers)
        return tuple(_SCALARS[a.type](value) for a, value in zip(self.arguments, values, strict=True))

    def _resolve(self, pointers: Mapping[str, int]) -> list[Any]:
        return [_address(value, pointers) if isinstance(value, str) else value for value in self.values.values()]


@dataclass(frozen=True)
class KernelSet:
    """All binaries of a folder."""

    folder: Path
    arguments: Mapping[str, tuple[Argument, ...]]
    packs: Mapping[str, tuple[str, str]]  # capability and format to file and sha256
    binaries: tuple[Binary, ...]

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Self:
        """Read manifest.json. Raises BackendError if it is missing or has another version."""
        path = folder / "manifest.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BackendError(f"{path}: the GPU kernels cannot be read ({error})", "install ebca again") from None
        if (data.get("format"), data.get("version")) != FORMAT:
            found = (data.get("format"), data.get("version"))
            raise BackendError(f"{path} is {found}, not {FORMAT}", "install ebca again")
        return cls(
            folder=folder,
            arguments={
                kernel: tuple(Argument(a["name"], a["type"], a["offset"]) for a in arguments)
                for kernel, arguments in data["arguments"].items()
            },
            packs={key: (pack["file"], pack["sha256"]) for key, pack in data["packs"].items()},
            binaries=tuple(_binary(record) for record in data["binaries"]),
        )

    def image(self, binary: Binary) -> bytes:
        """The cubin or PTX text. Raises BackendError for a damaged file."""
        return zlib.decompress(self._pack(pack_key(binary))[binary.offset : binary.offset + binary.size])

    def _pack(self, key: str) -> bytes:
        if key not in self._read:
            name, digest = self.packs[key]
            path = self.folder / name
            try:
                content = path.read_bytes()
            except OSError as error:
                raise BackendError(f"{path}: the GPU kernels cannot be read ({error})", "install ebca again") from None
            if hashlib.sha256(content).hexdigest() != digest:
                raise BackendError(f"{path} is damaged: its SHA-256 is not the manifest's", "install ebca again")
            self._read[key] = content
        return self._read[key]

    @cached_property
    def _read(self) -> dict[str, bytes]:
        return {}

    def choose(
        self, kernel: str, capability: Capability, dtype: str, head_dim: int, positions: int = 1, **constants: int
    ) -> Binary:
        """The binary of a kernel for a device, head size, number of positions, and constants (UPDATE, SINGLE).

        A cubin for exactly this compute capability, else PTX that the driver compiles for it.
        Raises BackendError, naming the capability, if there is neither, and ParameterError for a head size or dtype
        that no binary supports.
        """
        same = [b for b in self.on(kernel, capability) if b.dtype in (dtype, None)]
        if not same:
            raise ParameterError(f"no GPU kernel for dtype {dtype!r}", f"use {' or '.join(DTYPES)}")
        fits = [b for b in same if b.head_dims[0] <= head_dim <= b.head_dims[1] and head_dim % b.unit == 0]
        if not fits:
            ranges = sorted({(*b.head_dims, b.unit) for b in same})
            shown = ", ".join(f"{low} to {high} in steps of {unit}" for low, high, unit in ranges)
            raise ParameterError(f"no GPU kernel for head_dim {head_dim}", f"there are kernels for {shown}")
        fits = [b for b in fits if all(b.constants[name] == value for name, value in constants.items())]
        return max((b for b in fits if b.positions_from <= positions), key=lambda b: b.positions_from)

    def launch(
        self,
        kernel: str,
        capability: Capability,
        grid: tuple[int, int, int],
        values: Mapping[str, int | float],
    ) -> KernelLaunch:
        """A launch of a kernel that has a single form; pointers have the names of its tensors. Raises as `choose`."""
        (binary,) = self.on(kernel, capability)
        arguments = self.arguments[kernel]
        every = {a.name: a.name.removesuffix("_ptr") if a.name.endswith("_ptr") else 0 for a in arguments}
        return KernelLaunch(binary, arguments, grid, {**every, **values})

    def on(self, kernel: str, capability: Capability) -> list[Binary]:
        """All forms of a kernel for a device. Raises BackendError if there is none."""
        mine = [b for b in self.binaries if b.kernel == kernel]
        same = [b for b in mine if b.format == "cubin" and b.capability == capability]
        same = same or [b for b in mine if b.format == "ptx" and b.capability <= capability]
        if not same:
            raise BackendError(
                f"no GPU kernel for compute capability {_text(capability)}",
                f"there are cubins for "
                f"{', '.join(self.capabilities())} and PTX for any GPU from {_text(self._lowest())} on",
            )
        return same

    def capabilities(self) -> list[str]:
        """Compute capabilities that have cubins, as text, lowest first."""
        return [_text(c) for c in sorted({b.capability for b in self.binaries if b.format == "cubin"})]

    def _lowest(self) -> Capability:
        return min(b.capability for b in self.binaries if b.format == "ptx")


def pack_key(binary: Binary) -> str:
    """The pack that holds a binary: "8.9" for a cubin, "ptx" for PTX."""
    return "ptx" if binary.format == "ptx" else _text(binary.capability)


def _binary(record: Mapping[str, Any]) -> Binary:
    major, minor = record["capability"].split(".")
    low, high = record["head_dims"]
    known = {name: record[name] for name in Binary.__dataclass_fields__ if name not in ("capability", "head_dims")}
    return Binary(capability=(int(major), int(minor)), head_dims=(low, high), **known)


def _text(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _address(name: str, pointers: Mapping[str, int]) -> int:
    if name not in pointers:
        raise ParameterError(f"no device address for tensor {name!r}", f"there are {', '.join(sorted(pointers))}")
    if pointers[name] <= 0 or pointers[name] % 16:
        raise ParameterError(f"tensor {name!r} is at address {pointers[name]:#x}", "the kernels need multiples of 16")
    return pointers[name]
