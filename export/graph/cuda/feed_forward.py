"""The rest of a transformer block: LayerNormalization of a residual sum, and the gated GELU."""

import onnx_ir as ir

from ebca.export.graph.dtypes import HALF
from ebca.export.graph.rewriting import (
    MICROSOFT,
    biased,
    epsilon,
    given,
    only_user,
    producer,
    rank,
    replace,
    same_shape,
    shape_of,
    summands,
)

# The widths that the kernel of BiasSplitGelu is compiled for.
_GELU_WIDTHS = (2560, 5120, 10240)


def fuse_gated_gelu(graph: ir.Graph, node: ir.Node) -> None:
    """a, b = split(x + bias); a GELU(b) -> BiasSplitGelu."""
    if node.op_type != "Split" or len(node.outputs) != 2 or rank(given(node)[0]) != 3:
        return
    linear = given(node)[0]
    found = biased(linear)
    a, b = node.outputs
    gelu, product = only_user(b, "Gelu"), only_user(a, "Mul")
    if found is None or only_user(linear) is not node or gelu is None or product is None:
        return
    x, bias = found
    exact = "approximate" not in gelu.attributes or gelu.attributes["approximate"].as_string() == "none"
    if not exact or only_user(gelu.outputs[0]) != product:
        return
    if shape_of(bias)[0] not in _GELU_WIDTHS or x.dtype != HALF:
        return
    fused = ir.Node(MICROSOFT, "BiasSplitGelu", [x, bias], name=product.name)
    add = linear.producer()
    assert add is not None
    replace(graph, product, [add, node, gelu, product], [fused], [product.outputs[0]], [fused.outputs[0]])


def fuse_skip_layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    """LayerNormalization of a sum, one part of which may have a bias -> SkipLayerNormalization."""
    if node.op_type != "LayerNormalization" or len(given(node)) != 3 or len(node.outputs) != 1:
        return
    total, *weights = given(node)
    parts = summands(total)
    if parts is None or rank(total) != 3 or total.dtype != HALF or not same_shape(*parts):
        return
    if any(weight.dtype != HALF or rank(weight) != 1 for weight in weights):
        return
    add = producer(total, "Add")
    assert add is not None
    old, inputs = [add, node], [*parts, *weights]
    for x, skip in (parts, parts[::-1]):
        found, linear = biased(x), x.producer()
        if found is not None and linear is not None and only_user(x) is add:
            inputs = [found[0], skip, *weights, found[1]]
            old.insert(0, linear)
            break
    fused = ir.Node(
        MICROSOFT,
        "SkipLayerNormalization",
        inputs,
        [ir.AttrFloat32("epsilon", epsilon(node))],
        num_outputs=4,
        name=node.name,
    )
    normalised, mean, deviation, summed = fused.outputs
    # An optional output without a name is not computed.
    mean.name = deviation.name = ""
    replace(graph, node, old, [fused], [node.outputs[0], total], [normalised, summed])
