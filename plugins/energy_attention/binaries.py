"""The compiled kernels as data: which binary serves a call, and how to launch it. Standard library and numpy only.

`manifest.json` beside the binaries (its keys are in README.md) is all that is read; nothing here knows Triton or CUDA.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np

from ebca.errors import BackendError, ParameterError
from ebca.plugins.energy_attention.contract import signature

FOLDER: Final = Path(__file__).parent / "gpu_binaries"
FORMAT: Final = ("ebca-kernels", 1)
DTYPES: Final = ("float16", "bfloat16")
"""Storage types of q, k, v and out. The other tensors are float32."""

Capability = tuple[int, int]
"""Compute capability, (8, 9) for 8.9."""

_CODES: Final = {"pointer": "Q", "int32": "i", "float32": "f"}
_SCALARS: Final = {"pointer": np.uint64, "int32": np.int32, "float32": np.float32}
_ALIGNMENT: Final = 256


@dataclass(frozen=True)
class OpShape:
    """Sizes of one call. All tensors are contiguous, in the shapes of contract.py."""

    batch: int
    positions: int
    contexts: int
    tokens: int
    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ParameterError(f"{name} is {value}", "every size of the operator must be at least 1")
        row = self.channels * max(self.positions, self.contexts * self.tokens)
        if row >= 2**31 or self.positions * self.contexts >= 2**31:
            raise ParameterError(f"one batch row of {self} has 2^31 elements or more", "make the image smaller")
        if max(self.heads, self.batch * self.contexts) > 65535:
            raise ParameterError(f"{self}: heads and batch * contexts must be at most 65535, the limit of a grid")

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


class Argument(NamedTuple):
    """One kernel parameter: name, "pointer", "int32" or "float32", and its byte offset in the parameter buffer."""

    name: str
    type: str
    offset: int


@dataclass(frozen=True)
class Binary:
    """One compiled kernel for one compute capability (format "cubin"), or from it upwards (format "ptx")."""

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
    """One launch of a plan: the binary, its grid, and every argument; pointers by name until `pack`."""

    binary: Binary
    arguments: tuple[Argument, ...]
    grid: tuple[int, int, int]
    values: Mapping[str, int | float | str]  # a text is the name of a tensor

    def pack(self, pointers: Mapping[str, int]) -> bytes:
        """The parameter buffer: each argument, little-endian, at its offset. Raises as `scalars`."""
        end = self.arguments[-1]
        packed = bytearray(end.offset + struct.calcsize(_CODES[end.type]))
        for argument, value in zip(self.arguments, self._resolve(pointers), strict=True):
            struct.pack_into("<" + _CODES[argument.type], packed, argument.offset, value)
        return bytes(packed)

    def scalars(self, pointers: Mapping[str, int]) -> tuple[Any, ...]:
        """The arguments as numpy scalars, for launchers that take typed values one by one (cuda-core).

        Raises ParameterError for a tensor that is missing in `pointers` (device addresses) or not aligned to 16 bytes.
        """
        values = self._resolve(pointers)
        return tuple(_SCALARS[a.type](value) for a, value in zip(self.arguments, values, strict=True))

    def _resolve(self, pointers: Mapping[str, int]) -> list[Any]:
        return [_address(value, pointers) if isinstance(value, str) else value for value in self.values.values()]


@dataclass(frozen=True)
class OpPlan:
    """The launches of one call, in order on one stream, and the scratch memory they share.

    `scratch` maps the scratch tensors to byte offsets; nothing in them is kept from call to call.
    """

    launches: tuple[KernelLaunch, ...]
    tensors: tuple[str, ...]
    scratch: Mapping[str, int]
    scratch_bytes: int


@dataclass(frozen=True)
class KernelSet:
    """All binaries of a folder."""

    folder: Path
    arguments: Mapping[str, tuple[Argument, ...]]
    packs: Mapping[str, tuple[str, str]]  # capability and format to file and sha256
    binaries: tuple[Binary, ...]

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Self:
        """Read manifest.json. Raises BackendError if it is missing or of another version."""
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
        """The cubin or PTX text itself. Raises BackendError for a damaged file."""
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

    def choose(self, kernel: str, capability: Capability, dtype: str, shape: OpShape, **constants: int) -> Binary:
        """The binary of a kernel for a device, sizes and constants (UPDATE, SINGLE).

        A cubin of exactly this compute capability, else the PTX that the driver compiles for it.
        Raises BackendError naming the capability where there is neither, ParameterError for a head size or dtype that
        none serves.
        """
        same = [b for b in self._on(kernel, capability) if b.dtype in (dtype, None)]
        if not same:
            raise ParameterError(f"no GPU kernel for dtype {dtype!r}", f"use {' or '.join(DTYPES)}")
        fits = [b for b in same if b.head_dims[0] <= shape.head_dim <= b.head_dims[1] and shape.head_dim % b.unit == 0]
        if not fits:
            ranges = sorted({(*b.head_dims, b.unit) for b in same})
            shown = ", ".join(f"{low} to {high} in steps of {unit}" for low, high, unit in ranges)
            raise ParameterError(f"no GPU kernel for head_dim {shape.head_dim}", f"there are kernels for {shown}")
        fits = [b for b in fits if all(b.constants[name] == value for name, value in constants.items())]
        return max((b for b in fits if b.positions_from <= shape.positions), key=lambda b: b.positions_from)

    def launch(
        self,
        kernel: str,
        capability: Capability,
        grid: tuple[int, int, int],
        values: Mapping[str, int | float],
    ) -> KernelLaunch:
        """A launch of a kernel that has one form; pointers have the names of its tensors. Raises as `choose`."""
        (binary,) = self._on(kernel, capability)
        arguments = self.arguments[kernel]
        every = {a.name: a.name.removesuffix("_ptr") if a.name.endswith("_ptr") else 0 for a in arguments}
        return KernelLaunch(binary, arguments, grid, {**every, **values})

    def _on(self, kernel: str, capability: Capability) -> list[Binary]:
        """All forms of a kernel for a device."""
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
        """Compute capabilities with cubins of their own, as text, lowest first."""
        return [_text(c) for c in sorted({b.capability for b in self.binaries if b.format == "cubin"})]

    def _lowest(self) -> Capability:
        return min(b.capability for b in self.binaries if b.format == "ptx")

    def plan(self, variant: str, capability: Capability, dtype: str, shape: OpShape) -> OpPlan:
        """The launches of one variant. Raises as `choose`, and ParameterError for an unknown variant."""
        tensors = signature(variant, shape.heads, shape.head_dim)
        update = variant != "attention"
        masked = "mask" in tensors.inputs
        single = shape.contexts == 1 and not masked
        forward = self.choose("ebca_forward", capability, dtype, shape, UPDATE=int(update), SINGLE=int(single))
        tiles = _blocks(shape.positions, forward.constants["BLOCK_N"])
        if tiles * shape.tokens * shape.head_dim >= 2**31:
            raise ParameterError(f"{shape} needs scratch of 2^31 elements or more per head", "make the image smaller")
        groups = shape.batch * shape.contexts * shape.heads
        sizes = {
            "partial": groups * tiles * shape.tokens * shape.head_dim * 2,
            "column": groups * tiles * 2 * shape.tokens * 4,
            "norm2": groups * shape.tokens * 4,
        }
        scratch, total = _layout(sizes if update else {})
        values: dict[str, int | float | str] = {
            "N": shape.positions,
            "T": shape.tokens,
            "S": shape.contexts,
            "d": shape.head_dim,
            "heads": shape.heads,
            "tiles": tiles,
            "q_batch": shape.positions * shape.channels,
            "q_position": shape.channels,
            "k_batch": shape.contexts * shape.tokens * shape.channels,
            "k_context": shape.tokens * shape.channels,
            "k_token": shape.channels,
            "out_batch": shape.positions * shape.channels,
            "out_position": shape.channels,
            "mask_batch": shape.contexts * shape.positions,
            "mask_context": shape.positions,
            "mask_positions": shape.positions if masked else 0,
            "scale": math.log2(math.e) / math.sqrt(shape.head_dim),
        }
        names = (*tensors.inputs, *tensors.outputs, *scratch)
        grids = [(forward, (tiles, shape.heads, shape.batch))]
        if update:
            combine = self.choose("ebca_combine", capability, dtype, shape)
            of_tokens = _blocks(shape.tokens, combine.constants["BLOCK_T"])
            of_channels = _blocks(shape.head_dim, combine.constants["BLOCK_D"])
            grids.append((combine, (of_tokens * of_channels, shape.heads, shape.batch * shape.contexts)))
        if variant == "energies":
            energies = self.choose("ebca_energies", capability, dtype, shape)
            grids.append((energies, (shape.batch * shape.contexts, 1, 1)))
        launches = tuple(
            KernelLaunch(binary, arguments, grid, {a.name: _value(a, values, names) for a in arguments})
            for binary, grid in grids
            for arguments in [self.arguments[binary.kernel]]
        )
        return OpPlan(launches, (*tensors.inputs, *tensors.outputs), scratch, total)

    def scratch_bytes(self, variant: str, capability: Capability, dtype: str, largest: OpShape) -> int:
        """Scratch memory that is enough for a call of these sizes and of all smaller ones. Raises as `plan`.

        A smaller call may need more: one position below `positions_from` the tiles are smaller, and so there are more
        of them.
        """
        below = {b.positions_from - 1 for b in self._on("ebca_forward", capability)}
        positions = {largest.positions, *(n for n in below if 1 <= n < largest.positions)}
        calls = (replace(largest, positions=n, contexts=s) for n in positions for s in {1, largest.contexts})
        return max(self.plan(variant, capability, dtype, call).scratch_bytes for call in calls)


def pack_key(binary: Binary) -> str:
    """Which pack a binary lies in: "8.9" for a cubin, "ptx" for PTX."""
    return "ptx" if binary.format == "ptx" else _text(binary.capability)


def _binary(record: Mapping[str, Any]) -> Binary:
    major, minor = record["capability"].split(".")
    low, high = record["head_dims"]
    known = {name: record[name] for name in Binary.__dataclass_fields__ if name not in ("capability", "head_dims")}
    return Binary(capability=(int(major), int(minor)), head_dims=(low, high), **known)


def _text(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += _blocks(size, _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _value(argument: Argument, values: Mapping[str, int | float | str], names: tuple[str, ...]) -> int | float | str:
    """A size, the name of a tensor, or the null pointer for what the variant does not read."""
    if argument.type != "pointer":
        return values[argument.name]
    name = argument.name.removesuffix("_ptr")
    return name if name in names else 0


def _address(name: str, pointers: Mapping[str, int]) -> int:
    if name not in pointers:
        raise ParameterError(f"no device address for tensor {name!r}", f"there are {', '.join(sorted(pointers))}")
    if pointers[name] <= 0 or pointers[name] % 16:
        raise ParameterError(
            f"tensor {name!r} lies at {pointers[name]:#x}", "the kernels need addresses in steps of 16"
        )
    return pointers[name]
