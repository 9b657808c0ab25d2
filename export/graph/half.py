"""Convert a float32 graph to one that computes in float16.

`to_half` decides per node. A node stays in float32 if nothing it reads is float16 and it is no product with a weight.
Every other node gets its inputs cast, its weights stored as float16, and its results in float16. So the timestep's
sinusoids stay in float32 up to their first Linear, and the cascade of contexts stays in float32 throughout: g Wk is the
one product that is kept (`keep`), and the sum that reads it reads nothing else in float16. Rounding the contexts would
lose updates: a step of 1e-4 of a context is a fifth of float16's last place.

Every tensor has an explicit type, so that engines call the graph strongly typed and have no choice of type left.
The statistics of norms are float32 inside (`stash_type`). Attention's `softmax_precision` stays unset: TensorRT refuses
the attribute, and GPU kernels sum products and softmax in float32 anyway.
"""

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from ebca.errors import ExportError
from ebca.export.graph.dtypes import FLOAT, HALF
from ebca.export.graph.op_node import OP_TYPE

# What float16 is for. A lookup in a table of weights counts too: the table is as large as a product's weights.
_PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Gemm", "MatMul"})
# Operators whose other float inputs, or other outputs, are float32 by definition.
_TYPED_INPUTS = {"Resize": 1, OP_TYPE: 3}
_TYPED_OUTPUTS = {OP_TYPE: 1}
# Smaller weights are converted at once rather than when they are written.
_SMALL_BYTES = 1 << 16
_NORMS = frozenset({"GroupNormalization", "LayerNormalization", "RMSNormalization"})


def to_half(
    graph: ir.Graph,
    inputs: Mapping[str, ir.DataType] | None = None,
    *,
    keep: Collection[str] = (),
    float32_outputs: Collection[str] = (),
) -> None:
    """Make a float32 graph compute in float16, in place.

    Args:
        graph: nodes in topological order, float32.
        inputs: dtype of each float input that is not float32.
        keep: values whose products stay in float32; their weights are stored as float16 and cast.
        float32_outputs: outputs that are cast to float32 unless they are float32 already.

    Raises:
        ExportError: a weight does not fit float16, or the graph has a subgraph.
    """
    conversion = _Conversion(graph, frozenset(keep))
    for value in graph.inputs:
        if value.dtype == FLOAT:
            value.type = ir.TensorType((inputs or {}).get(str(value.name), FLOAT))
    for node in list(graph):
        conversion.convert(node)
    conversion.drop_unused()
    for index, value in enumerate(list(graph.outputs)):
        if value.dtype == HALF and value.name in float32_outputs:
            name, value.name = str(value.name), f"{value.name}.fp16"
            graph.outputs[index] = _append_cast(graph, value, FLOAT, name)


class _Conversion:
    """The conversion of one graph: each value is cast once, and each weight stored once."""

    def __init__(self, graph: ir.Graph, keep: frozenset[str]) -> None:
        self._graph = graph
        self._keep = keep
        self._casts: dict[ir.Value, ir.Value] = {}
        self._weights: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise ExportError(f"node '{node.name}' ({node.op_type}) has a subgraph, which cannot be made float16")
        if node.op_type == "Cast" or all(v.dtype not in (FLOAT, None) for v in node.outputs):
            return
        typed = _TYPED_INPUTS.get(node.op_type, len(node.inputs))
        floats = {i: v for i, v in enumerate(node.inputs[:typed]) if v is not None and v.dtype in (FLOAT, HALF)}
        product = node.op_type in _PRODUCTS
        product |= node.op_type == "Gather" and any(v.is_initializer() for v in floats.values())
        if product and any(v.name in self._keep for v in floats.values()):
            for index, value in floats.items():
                if value.is_initializer():
                    node.replace_input_with(index, self._cast(self._weight(value), FLOAT, node))
            return
        if not product and all(v.dtype == FLOAT for v in floats.values()):
            return
        for index, value in floats.items():
            if value.is_initializer():
                node.replace_input_with(index, self._weight(value))
            elif value.dtype == FLOAT:
                node.replace_input_with(index, self._cast(value, HALF, node))
        for value in node.outputs[: _TYPED_OUTPUTS.get(node.op_type)]:
            value.type = ir.TensorType(HALF)
        if node.op_type in _NORMS:
            node.attributes["stash_type"] = ir.AttrInt64("stash_type", int(FLOAT))

    def drop_unused(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(name)

    def _cast(self, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
        if value not in self._casts:
            suffix = "fp16" if to == HALF else "fp32"
            out = ir.Value(name=f"{value.name}.{suffix}", shape=value.shape, type=ir.TensorType(to))
            self._graph.insert_before(before, cast_node(value, out))
            self._casts[value] = out
        return self._casts[value]

    def _weight(self, value: ir.Value) -> ir.Value:
        if value not in self._weights:
            stored = half_weight(value, f"{value.name}.fp16")
            self._graph.initializers.add(stored)
            self._weights[value] = stored
        return self._weights[value]


def half_weight(value: ir.Value, name: str) -> ir.Value:
    """A float16 copy of an initializer; a large one is computed when it is written.

    Raises:
        ExportError: it has values beyond float16; for a large one, raised when it is written.
    """
    tensor = value.const_value
    assert tensor is not None
    stored: ir.TensorProtocol
    if tensor.nbytes < _SMALL_BYTES:
        stored = ir.tensor(_to_half(tensor, name), name=name)
    else:
        stored = ir.LazyTensor(
            lambda: ir.tensor(_to_half(tensor, name), name=name), dtype=HALF, shape=tensor.shape, name=name
        )
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(HALF), const_value=stored)


def _to_half(tensor: ir.TensorProtocol, name: str) -> np.ndarray:
    array = tensor.numpy()
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise ExportError(f"weight '{name}' has values beyond float16", "export with --precision fp32")
    return array.astype(np.float16)


def _append_cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    out = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
    graph.append(cast_node(value, out))
    return out


def cast_node(value: ir.Value, out: ir.Value) -> ir.Node:
    """A Cast of `value` to the dtype of `out`."""
    assert out.dtype is not None
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(out.dtype))], outputs=[out], name=f"cast.{out.name}")
