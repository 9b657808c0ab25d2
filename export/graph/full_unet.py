"""The full UNet as one graph, without the energy update.

It is the yardstick of every backend: compared with it, a benchmark shows what the cuts and the update cost. An engine
directory may store it for steps whose gammas are all zero.
"""

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ebca.errors import ExportError
from ebca.export.graph.op_node import OP_DOMAIN, int_attribute, is_op
from ebca.export.graph.traced_unet import TracedUNet


def full_unet_graph(traced: TracedUNet) -> ir.Graph:
    """The UNet's inputs -> noise, and the contexts [B,S,T,D] unchanged. It has standard operators and reads context 0
    only."""
    model = traced.copy()
    graph = model.graph
    contexts = graph.inputs[2]
    unchanged = ir.Node("", "Identity", [contexts])
    copy = unchanged.outputs[0]
    copy.name, copy.type, copy.shape = str(graph.outputs[1].name), contexts.type, contexts.shape
    graph.append(unchanged)
    graph.outputs[1] = copy
    first = ir.tensor(np.array(0, np.int64), name="first_context")
    zero = ir.Value(name=first.name, shape=first.shape, type=ir.TensorType(first.dtype), const_value=first)
    graph.initializers.add(zero)
    for node in [n for n in graph if is_op(n)]:
        _drop_update(node)
        _plain_attention(graph, node, zero)
    RemoveUnusedNodesPass()(model)
    traced.name_dimensions(graph)
    graph.opset_imports.pop(OP_DOMAIN, None)
    return graph


def _drop_update(node: ir.Node) -> None:
    """c + g Wk  ->  c"""
    (product,) = [n for n, _ in node.outputs[1].uses()]
    (total,) = [n for n, _ in product.outputs[0].uses()]
    if (product.op_type, total.op_type) != ("MatMul", "Add"):
        raise ExportError(f"'{node.name}' is followed by {product.op_type} and {total.op_type}, not MatMul and Add")
    (before,) = [v for v in total.inputs if v is not product.outputs[0]]
    assert before is not None
    ir.convenience.replace_all_uses_with(total.outputs[0], before)


def _plain_attention(graph: ir.Graph, node: ir.Node, zero: ir.Value) -> None:
    q, k, v = node.inputs
    out = node.outputs[0]
    assert q is not None and k is not None and v is not None and q.shape is not None
    channels = q.shape[-1]
    assert isinstance(channels, int)
    heads = int_attribute(node, "num_heads")
    picked = []
    for value in (k, v):
        gather = ir.Node("", "Gather", [value, zero], [ir.AttrInt64("axis", 1)])
        gather.outputs[0].type = value.type
        gather.outputs[0].name = f"{value.name}.first"
        picked.append(gather)
    attention = ir.Node(
        "",
        "Attention",
        [q, picked[0].outputs[0], picked[1].outputs[0]],
        [
            ir.AttrInt64("q_num_heads", heads),
            ir.AttrInt64("kv_num_heads", heads),
            ir.AttrFloat32("scale", 1 / math.sqrt(channels // heads)),
        ],
    )
    attention.outputs[0].type = out.type
    attention.outputs[0].name = f"{out.name}.plain"
    graph.insert_before(node, [*picked, attention])
    ir.convenience.replace_all_uses_with(out, attention.outputs[0])
