"""The operator as launches of compiled kernels: binaries, grids, arguments, and scratch memory."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ebca.errors import ParameterError
from ebca.plugins.energy_attention.contract import signature
from ebca.plugins.kernels.binaries import Argument, Capability, KernelLaunch, KernelSet
from ebca.plugins.kernels.launch import KernelLibrary, Stream

_ALIGNMENT = 256


@dataclass(frozen=True)
class OpShape:
    """Sizes of one call. All tensors are contiguous, with the shapes of contract.py.

    `groups` counts only for the guided variants, which need at least one.
    """

    batch: int
    positions: int
    contexts: int
    tokens: int
    heads: int
    head_dim: int
    groups: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "groups" else 1):
                raise ParameterError(f"{name} is {value}", "every size of the operator must be at least 1")
        row = max(self.channels, self.heads * self.groups) * max(self.positions, self.contexts * self.tokens)
        if row >= 2**31 or self.positions * self.contexts >= 2**31:
            raise ParameterError(f"one batch row of {self} has 2^31 elements or more", "make the image smaller")
        if max(self.heads, self.batch * self.contexts) > 65535:
            raise ParameterError(f"{self}: heads and batch * contexts must be at most 65535, the limit of a grid")

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class OpLaunches:
    """The launches of one call of the operator, in order on one stream, and the scratch memory they share.

    `scratch` maps the scratch tensors to byte offsets. They hold nothing between calls.
    """

    launches: tuple[KernelLaunch, ...]
    tensors: tuple[str, ...]
    scratch: Mapping[str, int]
    scratch_bytes: int


class EnergyAttention:
    """The operator on one device. Thread-safe."""

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library

    def launches(self, variant: str, dtype: str, shape: OpShape) -> OpLaunches:
        """The launches and the scratch memory (`scratch_bytes`) of a call. Raises as the function `launches`."""
        return launches(self._library.kernels, variant, self._library.capability, dtype, shape)

    def scratch_bytes(self, variant: str, dtype: str, largest: OpShape) -> int:
        """Scratch memory that is enough for calls up to these sizes. Raises as the function `launches`."""
        return scratch_bytes(self._library.kernels, variant, self._library.capability, dtype, largest)

    def bind(
        self, variant: str, dtype: str, shape: OpShape, addresses: Mapping[str, int], scratch: int = 0
    ) -> Callable[[Stream], None]:
        """A call that enqueues the operator on a stream.

        Args:
            variant: as in contract.py.
            dtype: storage type of q, k, v and out, "float16" or "bfloat16"; all other tensors are float32.
            shape: sizes; tensors are contiguous.
            addresses: name to device address, a multiple of 16 bytes, for all tensors of the variant.
            scratch: device address of `launches(...).scratch_bytes` bytes, a multiple of 16. Calls on one stream may
                share it.

        Raises ParameterError for sizes, dtypes or addresses that the kernels do not support, BackendError for a device
        that they do not support or a driver that refuses them. Composition weights are in device memory, so the caller
        must check them with contract.check_weights.
        """
        call = self.launches(variant, dtype, shape)
        if missing := [name for name in call.tensors if name not in addresses]:
            raise ParameterError(f"no device address for {', '.join(missing)}, which variant {variant!r} needs")
        if call.scratch_bytes and scratch <= 0:
            raise ParameterError(
                f"scratch is at address {scratch:#x}", f"pass {call.scratch_bytes} bytes of device memory"
            )
        in_scratch = {name: scratch + offset for name, offset in call.scratch.items()}
        return self._library.bind(call.launches, {**addresses, **in_scratch})


def launches(kernels: KernelSet, variant: str, capability: Capability, dtype: str, shape: OpShape) -> OpLaunches:
    """The launches of one variant. Raises as `KernelSet.choose`, and ParameterError for an unknown variant."""
    tensors = signature(variant, shape.heads, shape.head_dim)
    update = "g" in tensors.outputs
    masked = "mask" in tensors.inputs
    guided = "bias" in tensors.inputs
    single = shape.contexts == 1 and not masked
    size = shape.head_dim, shape.positions
    if guided:
        forward = kernels.choose("ebca_forward_guided", capability, dtype, *size)
        _check_groups(variant, shape, forward.constants["GROUPS"])
    else:
        forward = kernels.choose("ebca_forward", capability, dtype, *size, SINGLE=int(single))
    combine = kernels.choose("ebca_combine", capability, dtype, *size)
    span, splits = _ranges(shape.positions, forward.constants["BLOCK_P"], combine.constants["SPLITS"])
    tiles = _blocks(shape.positions, forward.constants["BLOCK_N"])
    scratch, total = _layout(_scratch_sizes(shape, splits, update, guided))
    values: dict[str, int | float | str] = {
        "N": shape.positions,
        "T": shape.tokens,
        "S": shape.contexts,
        "d": shape.head_dim,
        "heads": shape.heads,
        "groups": shape.groups,
        "cells": shape.groups * shape.positions,
        "splits": splits if update else 0,
        "span": span,
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
    places = tiles + _update_places(shape, splits, forward.constants) if update else tiles
    grids = [(forward, (places, shape.heads, shape.batch))]
    if update:
        of_tokens = _blocks(shape.tokens, combine.constants["BLOCK_T"])
        of_channels = _blocks(shape.head_dim, combine.constants["BLOCK_D"])
        grids.append((combine, (of_tokens * of_channels, shape.heads, shape.batch * shape.contexts)))
    if "energy_attn" in tensors.outputs:
        energies = kernels.choose("ebca_energies", capability, dtype, *size)
        grids.append((energies, (shape.batch * shape.contexts, 1, 1)))
    if guided:
        maps = kernels.choose("ebca_maps", capability, dtype, *size)
        of_cells = _blocks(shape.groups * shape.positions, maps.constants["BLOCK"])
        grids.append((maps, (of_cells, 1, shape.batch)))
    sequence = tuple(
        KernelLaunch(binary, arguments, grid, {a.name: _value(a, values, names) for a in arguments})
        for binary, grid in grids
        for arguments in [kernels.arguments[binary.kernel]]
    )
    return OpLaunches(sequence, (*tensors.inputs, *tensors.outputs), scratch, total)


def scratch_bytes(kernels: KernelSet, variant: str, capability: Capability, dtype: str, largest: OpShape) -> int:
    """Scratch memory that is enough for calls up to these sizes. Raises as `launches`.

    A smaller call may have more ranges of positions, and so need more memory.
    """
    own = launches(kernels, variant, capability, dtype, largest).scratch_bytes
    if not own:
        return 0
    tensors = signature(variant, largest.heads, largest.head_dim)
    guided = "bias" in tensors.inputs
    forward = "ebca_forward_guided" if guided else "ebca_forward"
    block = min(b.constants["BLOCK_P"] for b in kernels.on(forward, capability))
    most = max(b.constants["SPLITS"] for b in kernels.on("ebca_combine", capability))
    splits = min(most, _blocks(largest.positions, block))
    return _layout(_scratch_sizes(largest, splits, "g" in tensors.outputs, guided))[1]


def _check_groups(variant: str, shape: OpShape, most: int) -> None:
    if not 1 <= shape.groups <= most:
        raise ParameterError(
            f"variant {variant!r} is given {shape.groups} token groups", f"the GPU kernels take 1 to {most}"
        )


def _ranges(positions: int, block: int, most: int) -> tuple[int, int]:
    """(span, splits): at most `most` ranges of whole blocks; the last one may be shorter."""
    span = block * _blocks(_blocks(positions, block), most)
    return span, _blocks(positions, span)


def _update_places(shape: OpShape, splits: int, constants: Mapping[str, int]) -> int:
    """Programs per head and row that ebca_forward adds for the step: those of its `_pull` and `_square`."""
    rows, tail = constants["ROWS"], constants["TAIL"]
    wide = (shape.tokens + tail - 1) // rows
    narrow = _blocks(max(shape.tokens - wide * rows, 0), tail)
    norms = shape.contexts * _blocks(shape.tokens, constants["NORM_T"])
    return shape.contexts * splits * (wide + narrow) + _blocks(norms, shape.heads)


def _scratch_sizes(shape: OpShape, splits: int, update: bool, guided: bool) -> dict[str, int]:
    """Bytes of each scratch tensor."""
    sizes = {}
    if update:
        elements = splits * shape.tokens * shape.head_dim
        if elements >= 2**31:
            raise ParameterError(f"{shape} needs scratch of 2^31 elements or more per head", "make the image smaller")
        rows = shape.batch * shape.contexts
        sizes["partial"] = rows * shape.heads * elements * 2
        sizes["column"] = rows * shape.heads * splits * 2 * shape.tokens * 4
        sizes["norm2"] = rows * shape.tokens * 4
    if guided:
        sizes["head_maps"] = shape.batch * shape.heads * shape.groups * shape.positions * 4
    return sizes


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += _blocks(size, _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _value(argument: Argument, values: Mapping[str, int | float | str], names: tuple[str, ...]) -> int | float | str:
    """A size, the name of a tensor, or a null pointer for a tensor that the variant does not read."""
    if argument.type != "pointer":
        return values[argument.name]
    name = argument.name.removesuffix("_ptr")
    return name if name in names else 0
