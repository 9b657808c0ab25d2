"""Self-attention as ONNX Runtime's MultiHeadAttention, which has more kernels than the standard operator."""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ebca.export.graph.dtypes import FLOAT, HALF
from ebca.export.graph.op_node import int_attribute
from ebca.export.graph.rewriting import (
    MICROSOFT,
    cast,
    constant,
    given,
    only_user,
    permutation,
    producer,
    rank,
    replace,
    shape_of,
)

# Flash kernels take heads up to this size. The others store their scores, which in float16 end at 65504, so wider heads
# compute in float32: those of a VAE's single attention, which have all of its 512 channels.
_WIDEST_HEAD = 256


class _Operands(NamedTuple):
    """What an attention over [B,N,H d] reads, and the nodes whose place it takes, in order."""

    heads: int
    inputs: list[ir.Value]
    replaced: list[ir.Node]


def fuse_attention(graph: ir.Graph, node: ir.Node) -> None:
    """Attention of three tensors -> MultiHeadAttention."""
    if node.op_type != "Attention" or len(given(node)) != 3 or len(node.outputs) != 1:
        return
    if "is_causal" in node.attributes and int_attribute(node, "is_causal"):
        return
    if "q_num_heads" in node.attributes:
        found: _Operands | None = _Operands(int_attribute(node, "q_num_heads"), given(node), [node])
    else:
        found = _split_heads(node)
    if found is None:
        return
    heads, inputs, old = found
    width = shape_of(inputs[0])[-1] if rank(inputs[0]) else None
    attributes: list[ir.Attr] = [ir.AttrInt64("num_heads", heads)]
    if "scale" in node.attributes:
        attributes.append(ir.AttrFloat32("scale", node.attributes["scale"].as_float()))
    wide = inputs[0].dtype == HALF and isinstance(width, int) and width // heads > _WIDEST_HEAD
    before = [cast(value, FLOAT) for value in inputs] if wide else []
    fused = ir.Node(
        MICROSOFT,
        "MultiHeadAttention",
        [made.outputs[0] for made in before] or inputs,
        attributes,
        num_outputs=1,
        name=node.name,
    )
    fused.outputs[0].type = ir.TensorType(FLOAT) if wide else inputs[0].type
    after = [cast(fused.outputs[0], HALF)] if wide else []
    nodes = [*before, fused, *after]
    replace(graph, node, old, nodes, [old[-1].outputs[0]], [nodes[-1].outputs[0]])


def _split_heads(node: ir.Node) -> _Operands | None:
    """The operands of an attention over [B,H,N,d] whose tensors are made of [B,N,H d] by Reshape and Transpose, and
    whose result is joined again; None: another form."""
    before: list[ir.Node] = []
    inputs: list[ir.Value] = []
    for value in given(node):
        swap = producer(value, "Transpose")
        split = producer(given(swap)[0], "Reshape") if swap is not None and _swaps_heads(swap) else None
        if swap is None or split is None or rank(given(split)[0]) != 3 or rank(value) != 4:
            return None
        before += [made for made in (split, swap) if len(made.outputs[0].uses()) == 1]
        inputs.append(given(split)[0])
    swap = only_user(node.outputs[0], "Transpose")
    join = only_user(swap.outputs[0], "Reshape") if swap is not None and _swaps_heads(swap) else None
    heads = shape_of(given(node)[0])[1]
    if swap is None or join is None or rank(join.outputs[0]) != 3 or not isinstance(heads, int):
        return None
    return _Operands(heads, inputs, [*before, node, swap, join])


def _swaps_heads(node: ir.Node) -> bool:
    return permutation(node) == (0, 2, 1, 3)


def pack_attention(graph: ir.Graph, node: ir.Node) -> None:
    """Three products with the same tensor -> one, with q, k and v of a head beside each other: [B,N,H,3,d]."""
    if node.op_type != "MultiHeadAttention" or len(given(node)) != 3:
        return
    products = [made for value in given(node) if (made := producer(value, "MatMul")) is not None]
    if len(products) != 3 or any(only_user(p.outputs[0]) is not node for p in products):
        return
    x = given(products[0])[0]
    weights = [given(p)[1] for p in products]
    shape = shape_of(weights[0])
    rows, columns = shape if len(shape) == 2 else (None, None)
    if any(given(p)[0] is not x for p in products) or not isinstance(rows, int) or not isinstance(columns, int):
        return
    if any(not w.is_initializer() or shape_of(w) != shape for w in weights):
        return
    heads = int_attribute(node, "num_heads")
    head_dim = columns // heads
    apart = constant(graph, f"apart_{rows}_{heads}_{head_dim}", np.array([rows, heads, 1, head_dim], np.int64))
    joined = constant(graph, f"joined_{rows}_{columns}", np.array([rows, 3 * columns], np.int64))
    packed = constant(graph, f"packed_{heads}_{head_dim}", np.array([0, 0, heads, 3, head_dim], np.int64))
    # The session folds these when it opens; stored packed, the weights would be in the directory twice.
    parts = [ir.Node("", "Reshape", [w, apart]) for w in weights]
    beside = ir.Node("", "Concat", [part.outputs[0] for part in parts], [ir.AttrInt64("axis", 2)])
    weight = ir.Node("", "Reshape", [beside.outputs[0], joined])
    product = ir.Node("", "MatMul", [x, weight.outputs[0]], name=f"{node.name}.qkv")
    qkv = ir.Node("", "Reshape", [product.outputs[0], packed])
    fused = ir.Node(MICROSOFT, "MultiHeadAttention", [qkv.outputs[0]], node.attributes.values(), name=node.name)
    nodes = [*parts, beside, weight, product, qkv, fused]
    for made in nodes:
        made.outputs[0].type = weights[0].type
    replace(graph, node, [*products, node], nodes, [node.outputs[0]], [fused.outputs[0]])
