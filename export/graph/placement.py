"""Where each node of a traced UNet runs: its level, which is the number of cross-attention ops above it.

A node moves down to the first segment that reads it if that carries no more bytes across the cuts. What depends on the
timestep alone, and on the inputs that are embedded together with it, runs before all levels, as a segment of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ebca.engines.contract import dims
from ebca.engines.contract.entries import ADDED_INPUTS
from ebca.errors import ExportError
from ebca.export.graph.op_node import is_op
from ebca.export.graph.symbols import Symbols

# What one more boundary tensor costs beside its bytes: a binding and a buffer of its own.
TENSOR_COST = 64 * 1024

TIME_INPUTS = frozenset({"timestep", *ADDED_INPUTS})
TIME_LEVEL = -1

SHAPE_OPERAND = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Per operator, the input that is a shape and never crosses a cut."""


@dataclass
class Placement:
    """The level of every live node of a traced graph.

    `sizes` are the reference sizes at which bytes across the cuts are compared.
    """

    graph: ir.Graph
    symbols: Symbols
    sizes: Mapping[str, int]
    nodes: list[ir.Node] = field(init=False)
    level: dict[ir.Node, int] = field(init=False)
    levels: range = field(init=False)

    def __post_init__(self) -> None:
        for value in self.graph.inputs:
            if value.dtype != ir.DataType.FLOAT:
                raise ExportError(f"input '{value.name}' of the UNet is {value.dtype}, expected float32")
        live = _live_nodes(self.graph)
        self.nodes = [node for node in self.graph if node in live]
        self.level = {}
        for node in self.nodes:
            if self._of_time_alone(node):
                self.level[node] = TIME_LEVEL
            else:
                self.level[node] = max((self.produced(v) for v in operands(node)), default=0)
        last = max((self.level[n] + is_op(n) for n in self.nodes), default=0)
        self.levels = range(min(self.level.values(), default=0), last + 1)
        self._sink()

    def _of_time_alone(self, node: ir.Node) -> bool:
        def timed(value: ir.Value) -> bool:
            producer = value.producer()
            return value.name in TIME_INPUTS if producer is None else self.level[producer] == TIME_LEVEL

        sources = operands(node)
        return bool(sources) and not is_op(node) and all(timed(v) for v in sources)

    def produced(self, value: ir.Value) -> int:
        """The first level at which a value can be read."""
        node = value.producer()
        if node is None:
            return 0
        return max(self.level[node] + is_op(node), 0)

    def consumers(self, value: ir.Value) -> list[ir.Node]:
        return [n for n, index in value.uses() if n in self.level and value in operands(n)]

    def crosses(self, value: ir.Value) -> bool:
        """Whether the value needs a buffer outside the segments."""
        node = value.producer()
        if node is None:
            return not value.is_initializer()
        if is_op(node) or value.is_graph_output():
            return True
        return any(is_op(n) or self.level[n] > self.level[node] for n in self.consumers(value))

    def bytes(self, value: ir.Value) -> int:
        shape = dims.shape(self.symbols.shape(value), self.sizes)
        return 4 * int(np.prod(shape, dtype=np.int64)) + TENSOR_COST

    def carried(self) -> int:
        """Bytes between segments: every tensor counted at each cut that it crosses, without inputs and outputs."""
        values = [v for n in self.nodes for v in n.outputs if not v.is_graph_output()]
        return sum(self.bytes(v) * (self._last_read(v) - self.produced(v)) for v in values)

    def _last_read(self, value: ir.Value, without: ir.Node | None = None) -> int:
        return max((self.level[n] for n in self.consumers(value) if n is not without), default=self.produced(value))

    def _sink(self) -> None:
        """Move nodes down to the first segment that reads them, if that carries no more bytes."""
        earliest, most = dict(self.level), self.carried()
        for node in reversed(self.nodes):
            if is_op(node) or self.level[node] == TIME_LEVEL or any(v.is_graph_output() for v in node.outputs):
                continue
            target = min((self.level[n] for v in node.outputs for n in self.consumers(v)), default=0)
            cuts = target - self.level[node]
            if cuts <= 0:
                continue
            saved = cuts * sum(self.bytes(v) for v in node.outputs if self.consumers(v))
            cost = sum(
                self.bytes(v) * max(target - self._last_read(v, without=node), 0)
                for v in operands(node)
                if v.producer() is not None
            )
            # The allowance lets the first of several readers of one small tensor move down.
            if cost <= saved + cuts * TENSOR_COST:
                self.level[node] = target
        if self.carried() > most:
            self.level = earliest


def operands(node: ir.Node) -> list[ir.Value]:
    """The data inputs of a node: no weights, no shape operand, each once."""
    skip = SHAPE_OPERAND.get(node.op_type)
    found: dict[ir.Value, None] = {}
    for index, value in enumerate(node.inputs):
        if value is None or value.is_initializer() or (index == skip and not node.domain):
            continue
        found[value] = None
    return list(found)


def _live_nodes(graph: ir.Graph) -> set[ir.Node]:
    live: set[ir.Node] = set()
    stack = [n for v in graph.outputs if (n := v.producer()) is not None]
    while stack:
        node = stack.pop()
        if node in live:
            continue
        live.add(node)
        stack += [n for v in operands(node) if (n := v.producer()) is not None]
    return live
