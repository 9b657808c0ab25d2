"""How the kernel is launched: tensors in order, sizes, and grid. Needs neither Triton nor CUDA."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ebca.errors import ParameterError
from ebca.plugins.exclusive_attention.contract import TENSORS, sizes

KERNEL: Final = "ebca_exclude"

BLOCK: Final = 1024
"""Positions that a program holds in registers: maps of 32x32, the largest that locate subjects."""

MAX_GROUPS: Final = 31
"""Groups that a program keeps apart, a bit for each."""


@dataclass(frozen=True)
class ExclusionLaunch:
    """One launch: tensors in the order of the kernel's pointers, its integers in order, and the number of blocks."""

    tensors: tuple[str, ...]
    values: Mapping[str, int]
    blocks: int


def launch(shapes: Mapping[str, tuple[int, ...]], layer_stride: int | None = None) -> ExclusionLaunch:
    """The launch for arrays of these shapes (see TENSORS).

    layer_stride: elements from the maps of one source layer to those of the next, R G N if they lie side by side.
    Raises ParameterError for shapes that contradict each other, or sizes that the kernel does not have.
    """
    found = sizes(shapes)
    side_by_side = found["R"] * found["G"] * found["N"]
    stride = side_by_side if layer_stride is None else layer_stride
    if found["N"] > BLOCK:
        raise ParameterError(
            f"exclusive attention is given maps of {found['h']}x{found['w']}",
            f"its GPU kernel takes {BLOCK} positions or fewer: use layers of a lower resolution",
        )
    if found["G"] > MAX_GROUPS:
        raise ParameterError(f"exclusive attention is given {found['G']} groups", f"it takes {MAX_GROUPS} or fewer")
    if not side_by_side <= stride < 2**31:
        raise ParameterError(
            f"the maps of source layers are {stride} elements apart", f"pass {side_by_side} or more, below 2^31"
        )
    values = {
        "layers": found["L"],
        "layer_stride": stride,
        "contexts": found["S"],
        "groups": found["G"],
        "height": found["h"],
        "width": found["w"],
    }
    return ExclusionLaunch(tuple(TENSORS), values, found["R"])
