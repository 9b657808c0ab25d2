"""Lower a graph: rewrite it in operators that one backend runs faster.

The runtime has no ONNX library, so the export writes the lowered graph beside the canonical one, on the same weights.
For ONNX Runtime, measured on a CPU at SD 1.5 size:

* Attention -> com.microsoft.MultiHeadAttention. The standard operator stores the full score matrix, 2 GB at 4096
  positions; the other is a flash kernel.
* GroupNormalization -> InstanceNormalization and a scale. ONNX Runtime expands the standard operator into nine nodes.
* EnergyCrossAttention, in the full UNet with updates -> its standard operators.

For its CUDA provider see `ebca.export.graph.cuda`, which comes first.
"""

import numpy as np
import onnx_ir as ir

from ebca.export.graph.dtypes import dtype_name
from ebca.export.graph.op_node import OP_DOMAIN, int_attribute, is_op
from ebca.export.graph.rewriting import MICROSOFT, constant, replace
from ebca.plugins.energy_attention.onnx_model import op_model


def lower_for_onnxruntime(model: ir.Model) -> None:
    """Rewrite a graph in place for ONNX Runtime."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Attention" and "q_num_heads" in node.attributes and _is_plain(node):
            _replace(graph, node, _multi_head_attention(node))
            graph.opset_imports[MICROSOFT] = 1
        elif node.op_type == "GroupNormalization":
            _replace(graph, node, _instance_normalization(graph, node))
        elif is_op(node):
            _inline_op(graph, node)
    graph.opset_imports.pop(OP_DOMAIN, None)


def _is_plain(node: ir.Node) -> bool:
    return len([v for v in node.inputs if v is not None]) == 3 and len(node.outputs) == 1


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    replace(graph, node, [node], nodes, [node.outputs[0]], [nodes[-1].outputs[0]])


def _multi_head_attention(node: ir.Node) -> list[ir.Node]:
    heads = int_attribute(node, "q_num_heads")
    attributes: list[ir.Attr] = [ir.AttrInt64("num_heads", heads)]
    if "scale" in node.attributes:
        attributes.append(ir.AttrFloat32("scale", node.attributes["scale"].as_float()))
    return [ir.Node(MICROSOFT, "MultiHeadAttention", node.inputs, attributes, num_outputs=1, name=node.name)]


def _instance_normalization(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    x, scale, bias = node.inputs
    assert scale is not None and scale.shape is not None
    channels = scale.shape[0]
    groups = int_attribute(node, "num_groups")
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    grouped = constant(graph, f"grouped_{groups}", np.array([0, groups, -1], np.int64))
    assert scale.dtype is not None
    dtype = scale.dtype.numpy()
    ones = constant(graph, f"ones_{groups}", np.ones(groups, dtype))
    zeros = constant(graph, f"zeros_{groups}", np.zeros(groups, dtype))
    flat = constant(graph, f"flat_{channels}", np.array([0, channels, -1], np.int64))
    axis = constant(graph, "last_axis", np.array([1], np.int64))
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


def _inline_op(graph: ir.Graph, node: ir.Node) -> None:
    heads, head_dim = (int_attribute(node, name) for name in ("num_heads", "head_dim"))
    q = node.inputs[0]
    storage = dtype_name(q.dtype) if q is not None else None
    assert storage is not None
    body = ir.from_proto(op_model(heads, head_dim, node.attributes["variant"].as_string(), storage)).graph
    nodes, results = list(body), list(body.outputs)
    for parameter, value in zip(body.inputs, node.inputs, strict=True):
        assert value is not None
        ir.convenience.replace_all_uses_with(parameter, value)
    for weight in list(body.initializers.values()):
        assert weight.const_value is not None
        ir.convenience.replace_all_uses_with(
            weight, constant(graph, f"{node.name}.{weight.name}", weight.const_value.numpy())
        )
    body.outputs.clear()
    body.remove(nodes)
    for inner in nodes:
        inner.name = f"{node.name}.{inner.name}"
        for value in inner.outputs:
            value.name = f"{node.name}.{value.name}"
    for old, new in zip(node.outputs, results, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, results)
