"""What a split consists of: segments, the op calls between them, and the tensors that they exchange."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ebca.engines.contract import dims
from ebca.engines.contract.dims import Dim


@dataclass(frozen=True)
class Boundary:
    """A tensor that crosses a cut, or an input or output of the UNet. Always float32."""

    name: str
    shape: tuple[Dim, ...]

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        return 4 * int(np.prod(dims.shape(self.shape, sizes), dtype=np.int64))


@dataclass(frozen=True)
class OpCall:
    """One EnergyCrossAttention between two segments.

    Attributes:
        layer: index of the cross-attention layer, in order of execution.
        heads: number of attention heads.
        inputs: names of q, k, v.
        outputs: names of out, g.
        height, width: of the image positions, which q has flattened.
    """

    layer: int
    heads: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    height: Dim
    width: Dim


@dataclass(frozen=True)
class Segment:
    """One piece of the UNet: a graph of standard operators, and the op calls that follow it."""

    name: str
    graph: ir.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[OpCall, ...]
    float32_only: bool

    @property
    def weight_bytes(self) -> int:
        return sum(v.const_value.nbytes for v in self.graph.initializers.values() if v.const_value is not None)

    @property
    def nodes(self) -> int:
        return len(self.graph)


@dataclass(frozen=True)
class Split:
    """The segments in order of execution, and every tensor between them by name."""

    segments: tuple[Segment, ...]
    tensors: Mapping[str, Boundary]
