"""Build the graph of one segment from nodes of the traced graph, with shape operands made from tensors at hand."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ebca.errors import ExportError
from ebca.export.graph.placement import SHAPE_OPERAND
from ebca.export.graph.symbols import Symbols


class SegmentBuilder:
    """Copies nodes into a new graph.

    Args:
        symbols: translation of the traced graph's dimensions.
        names: names of the values that cross the segment's boundary.
        inputs: values that the segment reads.
    """

    def __init__(self, symbols: Symbols, names: Mapping[ir.Value, str], inputs: Sequence[ir.Value]) -> None:
        self._symbols = symbols
        self._names = names
        self._inputs = list(inputs)
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._values: dict[ir.Value, ir.Value] = {value: self._value(value) for value in inputs}

    def graph(self, outputs: Sequence[ir.Value], name: str, opset: int) -> ir.Graph:
        """The graph of all nodes added so far."""
        return ir.Graph(
            [self._values[v] for v in self._inputs],
            [self._values[v] for v in outputs],
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": opset},
            name=name,
        )

    def add(self, node: ir.Node) -> None:
        """Copy a node whose operands were added before."""
        skip = SHAPE_OPERAND.get(node.op_type) if not node.domain else None
        inputs: list[ir.Value | None] = []
        for position, value in enumerate(node.inputs):
            if value is None:
                inputs.append(None)
            elif position == skip and value.const_value is None:
                inputs.append(self._shape_operand(node))
            elif value.is_initializer():
                inputs.append(self._weight(value))
            else:
                inputs.append(self._values[value])
        outputs = [self._value(v) for v in node.outputs]
        self._values.update(zip(node.outputs, outputs, strict=True))
        # Reshape operands made here use 0 for "as it was".
        attributes = [a for a in node.attributes.values() if a.name != "allowzero"]
        self._nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=node.name))

    def _value(self, value: ir.Value) -> ir.Value:
        name = self._names.get(value, value.name)
        return ir.Value(name=name, shape=self._symbols.shape_if_known(value), type=value.type)

    def _weight(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        return self._initializer(str(value.name), value.const_value)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self._initializer(name, ir.tensor(array, name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self._initializers:
            self._initializers[name] = ir.Value(
                name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self._initializers[name]

    def _shape_operand(self, node: ir.Node) -> ir.Value:
        """The wanted output shape: a constant with 0 and -1 if Reshape can infer, else read from a local tensor."""
        data, out = node.inputs[0], node.outputs[0]
        assert data is not None
        wanted, given = self._symbols.shape(out), self._symbols.shape(data)
        parts: list[int | tuple[ir.Value, int]] = []
        open_axes: list[int] = []
        for axis, dim in enumerate(wanted):
            if isinstance(dim, int):
                parts.append(dim)
            elif axis < len(given) and given[axis] == dim:
                parts.append(0 if node.op_type == "Reshape" else (data, axis))
            else:
                parts.append(-1)
                open_axes.append(axis)
        if node.op_type != "Reshape" or len(open_axes) > 1:
            for axis in open_axes:
                parts[axis] = self._find(str(wanted[axis]), node)
        if all(isinstance(p, int) for p in parts):
            array = np.array(parts, np.int64)
            return self._constant("shape_" + "_".join(map(str, array)).replace("-1", "rest"), array)
        return self._concat(parts, str(out.name))

    def _find(self, dim: str, node: ir.Node) -> tuple[ir.Value, int]:
        # Inputs first: reading the size of a value inside keeps a backend from fusing its producer. A segment that
        # goes down and up again, in blocks without cross-attention, has no input of the sizes in between.
        for value in self._values:
            shape = tuple(self._symbols.shape_if_known(value) or ())
            if dim in shape:
                return value, shape.index(dim)
        raise ExportError(f"no tensor beside '{node.name}' ({node.op_type}) has the size '{dim}'")

    def _concat(self, parts: Iterable[int | tuple[ir.Value, int]], name: str) -> ir.Value:
        pieces: list[ir.Value] = []
        for position, part in enumerate(parts):
            if isinstance(part, int):
                pieces.append(self._constant(f"size_{part}", np.array([part], np.int64)))
                continue
            value, axis = part
            size = ir.Value(name=f"{name}.size_{position}", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
            attributes = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
            self._nodes.append(ir.Node("", "Shape", [self._values[value]], attributes, outputs=[size]))
            pieces.append(size)
        out = ir.Value(name=f"{name}.shape", shape=ir.Shape([len(pieces)]), type=ir.TensorType(ir.DataType.INT64))
        self._nodes.append(ir.Node("", "Concat", pieces, [ir.AttrInt64("axis", 0)], outputs=[out]))
        return out
