"""The arithmetic of a float16 graph on a CPU, which has no kernels in float16.

Operators compute in float32 and each result is rounded to float16. ONNX Runtime by default would keep float32 between
nodes, and its errors would look smaller than those of the engine.
"""

import onnx_ir as ir

from ebca.export.graph.dtypes import FLOAT, HALF
from ebca.export.graph.half import cast_node

# Operators that move values and round nothing.
_MOVES = frozenset(
    {"Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def emulate(model: ir.Model) -> None:
    """Rewrite a graph of `to_half` in place: float32 operators, every result rounded to float16; inputs, outputs and
    stored weights keep their dtypes."""
    graph = model.graph
    for value in (*graph.initializers.values(), *graph.inputs):
        if value.dtype == HALF:
            wide = ir.Value(name=f"{value.name}.wide", shape=value.shape, type=ir.TensorType(FLOAT))
            _read_instead(value, wide)
            graph.insert_before(graph[0], cast_node(value, wide))
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == HALF:
                _round(graph, node, value)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let a node compute its float16 result in float32, and let its readers read the result rounded and widened."""
    moves, final = node.op_type in _MOVES, value.is_graph_output()
    name = str(value.name)
    if node.op_type == "Cast":
        wide = ir.Value(name=f"{name}.wide", shape=value.shape, type=ir.TensorType(FLOAT))
        _read_instead(value, wide)
        graph.insert_after(node, cast_node(value, wide))
        return
    value.type = ir.TensorType(FLOAT)
    if moves and not final:
        return
    rounded = ir.Value(name=name, shape=value.shape, type=ir.TensorType(HALF))
    wide = ir.Value(name=f"{name}.wide", shape=value.shape, type=ir.TensorType(FLOAT))
    value.name = f"{name}.exact"
    _read_instead(value, wide)
    graph.insert_after(node, [cast_node(value, rounded), cast_node(rounded, wide)])
    for index, output in enumerate(list(graph.outputs)):
        if output is value:
            graph.outputs[index] = rounded


def _read_instead(value: ir.Value, other: ir.Value) -> None:
    """Every node that reads `value` reads `other`; outputs of the graph stay."""
    for node, index in list(value.uses()):
        node.replace_input_with(index, other)
