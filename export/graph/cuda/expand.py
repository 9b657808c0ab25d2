"""Write the operators of `ebca.export.graph.cuda.fuse` in standard ones again, for a CPU that emulates a GPU.

The result computes what a fused kernel computes: inside it everything is float32, and only what it returns has a dtype
that `ebca.export.graph.emulate` rounds. The kernel of SkipLayerNormalization sums in float16 on a GPU, which is not
emulated.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ebca.export.graph.dtypes import FLOAT, HALF
from ebca.export.graph.op_node import int_attribute
from ebca.export.graph.rewriting import MICROSOFT, constant, drop_unused, epsilon, given, replace


def expand_fused(model: ir.Model) -> None:
    """Rewrite a graph of `fuse_for_cuda` in place; its operators must run on float32 afterwards, see `emulate`."""
    graph = model.graph
    for node in list(graph):
        expand = _FORMS.get(node.op_type) if node.domain == MICROSOFT else None
        if expand is not None and node.graph is graph:
            expand(graph, node)
    graph.sort()
    drop_unused(graph)


class _Body:
    """The nodes that replace one fused operator. Values are float32 unless `rounded` makes them float16."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = []

    def do(self, op: str, *inputs: ir.Value, domain: str = "", outputs: int = 1, **attributes: object) -> ir.Value:
        node = ir.Node(domain, op, inputs, ir.convenience.convert_attributes(attributes), num_outputs=outputs)
        for value in node.outputs:
            value.type = ir.TensorType(FLOAT)
        self.nodes.append(node)
        return node.outputs[0]

    def ints(self, *values: int) -> ir.Value:
        return constant(self.graph, "ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    @staticmethod
    def rounded(value: ir.Value) -> ir.Value:
        value.type = ir.TensorType(HALF)
        return value

    def replace(self, old: Sequence[ir.Node], values: Mapping[ir.Value, ir.Value]) -> None:
        replace(self.graph, old[-1], old, self.nodes, list(values), list(values.values()))


def _group_norm(graph: ir.Graph, node: ir.Node) -> None:
    """GroupNorm, SkipGroupNorm: back to channels first, without the Transposes around them."""
    x, scale, bias, *skip = given(node)
    groups = int_attribute(node, "groups")
    before, after = x.producer(), node.outputs[0].uses()[0][0]
    body, value, old = _Body(graph), before.inputs[0], [node]
    results: dict[ir.Value, ir.Value] = {}
    if skip:
        source = skip[0].producer()
        total = body.rounded(body.do("Add", value, source.inputs[0]))
        value = total
        for output in node.outputs[1:]:
            again = output.uses()[0][0]
            old.append(again)
            results[again.outputs[0]] = body.do("Identity", total)
    result = body.do("GroupNormalization", value, scale, bias, num_groups=groups, epsilon=epsilon(node))
    if int_attribute(node, "activation"):
        result = body.do("Mul", result, body.do("Sigmoid", result))
    results[after.outputs[0]] = body.rounded(result)
    old.append(after)
    body.replace(old, results)
    _drop_unread(graph, before, *([skip[0].producer()] if skip else []))


def _skip_layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    x, skip, scale, shift, *bias = given(node)
    body = _Body(graph)
    total = body.do("Add", x, bias[0]) if bias else x
    total = body.rounded(body.do("Add", total, skip))
    normalised = body.do("LayerNormalization", total, scale, shift, axis=-1, epsilon=epsilon(node))
    body.replace([node], {node.outputs[0]: body.rounded(normalised), node.outputs[3]: total})


def _gated_gelu(graph: ir.Graph, node: ir.Node) -> None:
    body = _Body(graph)
    a = body.do("Split", body.do("Add", *given(node)), outputs=2, axis=-1, num_outputs=2)
    b = a.producer().outputs[1]
    result = body.do("Mul", a, body.do("Gelu", b, approximate="none"))
    body.replace([node], {node.outputs[0]: body.rounded(result)})


def _packed_attention(graph: ir.Graph, node: ir.Node) -> None:
    """MultiHeadAttention of [B,N,H,3,d], which no CPU kernel takes."""
    if len(given(node)) != 1:
        return
    body = _Body(graph)
    first = body.do("Split", given(node)[0], outputs=3, axis=3, num_outputs=3)
    parts = [body.do("Reshape", part, body.ints(0, 0, -1)) for part in first.producer().outputs]
    kept = {name: attribute.value for name, attribute in node.attributes.items()}
    result = body.do("MultiHeadAttention", *parts, domain=MICROSOFT, **kept)
    body.replace([node], {node.outputs[0]: body.rounded(result)})


def _drop_unread(graph: ir.Graph, *nodes: ir.Node) -> None:
    for node in nodes:
        if not node.outputs[0].uses():
            graph.remove(node, safe=True)


_FORMS: Mapping[str, Callable[[ir.Graph, ir.Node], None]] = {
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _group_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "BiasSplitGelu": _gated_gelu,
    "MultiHeadAttention": _packed_attention,
}
