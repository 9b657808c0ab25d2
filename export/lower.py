"""The same graph in operators that one backend runs faster.

The runtime carries no ONNX library, so a rewrite that needs one happens here, beside the canonical graph and on the
same weights. For ONNX Runtime, measured on CPU at SD 1.5 size (its GPU provider has the same kernels; not measured):

* Attention -> com.microsoft.MultiHeadAttention. The standard operator keeps the whole score matrix: 2 GB at 4096
  positions; the other is a flash kernel.
* GroupNormalization -> InstanceNormalization and a scale. ONNX Runtime expands the standard operator into nine nodes.
"""

import numpy as np
import onnx_ir as ir

_MICROSOFT = "com.microsoft"


def lower_for_onnxruntime(model: ir.Model) -> None:
    """Rewrite a segment in place for ONNX Runtime."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Attention" and "q_num_heads" in node.attributes and _is_plain(node):
            _replace(graph, node, _multi_head_attention(node))
            graph.opset_imports[_MICROSOFT] = 1
        elif node.op_type == "GroupNormalization":
            _replace(graph, node, _instance_normalization(graph, node))


def _is_plain(node: ir.Node) -> bool:
    return len([v for v in node.inputs if v is not None]) == 3 and len(node.outputs) == 1


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])


def _multi_head_attention(node: ir.Node) -> list[ir.Node]:
    heads = node.attributes["q_num_heads"].as_int()
    attributes: list[ir.Attr] = [ir.AttrInt64("num_heads", heads)]
    if "scale" in node.attributes:
        attributes.append(ir.AttrFloat32("scale", node.attributes["scale"].as_float()))
    return [ir.Node(_MICROSOFT, "MultiHeadAttention", node.inputs, attributes, num_outputs=1, name=node.name)]


def _instance_normalization(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    x, scale, bias = node.inputs
    assert scale is not None and scale.shape is not None
    channels = scale.shape[0]
    groups = node.attributes["num_groups"].as_int()
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    grouped = _constant(graph, f"grouped_{groups}", np.array([0, groups, -1], np.int64))
    assert scale.dtype is not None
    dtype = scale.dtype.numpy()
    ones = _constant(graph, f"ones_{groups}", np.ones(groups, dtype))
    zeros = _constant(graph, f"zeros_{groups}", np.zeros(groups, dtype))
    flat = _constant(graph, f"flat_{channels}", np.array([0, channels, -1], np.int64))
    axis = _constant(graph, "last_axis", np.array([1], np.int64))
    shape = ir.Node("", "Shape", [x])
    folded = ir.Node("", "Reshape", [x, grouped])
    normalised = ir.Node(
        "", "InstanceNormalization", [folded.outputs[0], ones, zeros], [ir.AttrFloat32("epsilon", epsilon)]
    )
    unfolded = ir.Node("", "Reshape", [normalised.outputs[0], flat])
    wide_scale, wide_bias = (ir.Node("", "Unsqueeze", [v, axis]) for v in (scale, bias))
    scaled = ir.Node("", "Mul", [unfolded.outputs[0], wide_scale.outputs[0]])
    shifted = ir.Node("", "Add", [scaled.outputs[0], wide_bias.outputs[0]])
    restored = ir.Node("", "Reshape", [shifted.outputs[0], shape.outputs[0]])
    return [shape, folded, normalised, unfolded, wide_scale, wide_bias, scaled, shifted, restored]


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.initializers.add(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]
