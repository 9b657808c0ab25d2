"""Splitting is a graph cut: one traced UNet graph in, one graph per segment out.

The level of a node is the number of cross-attention ops above it. Each level is a segment, and the ops run between the
segments. Values that a later level reads become boundary tensors. Three rules keep the cut cheap:

* Shape arithmetic never crosses a boundary: the shape operand of Reshape and Resize is rebuilt in each segment from
  the tensors at hand, mostly as a constant.
* A node moves down to the first segment that reads it if that carries no more bytes across the cuts.
* Weights are constants and are never carried.

What depends on the timestep alone runs before all levels, as a segment of its own that is always computed in float32:
sinusoids of a timestep rounded to bfloat16 (981 becomes 980) are off by 40 %, and the noise prediction by 16 %. Stable
Diffusion XL embeds sizes in the same way, and adds them and its pooled embedding to the timestep's, so this segment
takes them too.
"""

from collections.abc import Mapping

import onnx_ir as ir

from ebca.export.graph.boundary_names import boundary_names
from ebca.export.graph.op_node import OPSET, int_attribute, is_op
from ebca.export.graph.placement import TIME_LEVEL, Placement, operands
from ebca.export.graph.segment_builder import SegmentBuilder
from ebca.export.graph.segments import Boundary, OpCall, Segment, Split
from ebca.export.graph.symbols import Symbols
from ebca.export.graph.traced_unet import TracedUNet


def split_unet(traced: TracedUNet) -> tuple[Split, dict[str, int]]:
    """Split a UNet at its native size. Returns the split and the sizes at which bytes were compared."""
    side = traced.sample_size
    sizes = {"batch": 2, "contexts": 1, "tokens": 77, "height": side, "width": side}
    return split(traced.copy(), traced.symbols, sizes, OPSET), sizes


def split(model: ir.Model, symbols: Symbols, sizes: Mapping[str, int], opset: int) -> Split:
    """Cut a traced graph at its ops.

    Args:
        model: graph with `ebca::EnergyCrossAttention` nodes (inputs q, k, v; outputs out, g; attributes layer,
            num_heads) and float32 tensors.
        symbols: translation of the graph's dimensions.
        sizes: reference sizes at which bytes across the cuts are compared.
        opset: ONNX opset of the graph.

    Raises:
        ExportError: the graph has a shape computation or a dtype on a boundary that cannot be cut.
    """
    placement = Placement(model.graph, symbols, sizes)
    names = boundary_names(placement)
    segments = tuple(_segment(placement, level, names, opset) for level in placement.levels)
    used = {name for s in segments for name in (*s.inputs, *s.outputs, *(n for o in s.ops for n in o.outputs))}
    tensors = {n: Boundary(n, symbols.shape(v)) for v, n in names.items() if n in used}
    return Split(segments, dict(sorted(tensors.items())))


def _segment(placement: Placement, level: int, names: Mapping[ir.Value, str], opset: int) -> Segment:
    of_time = level == TIME_LEVEL
    title = "time_embedding" if of_time else f"segment_{level:02}"
    here = [n for n in placement.nodes if placement.level[n] == level]
    nodes, ops = [n for n in here if not is_op(n)], [n for n in here if is_op(n)]
    inside = set(nodes)
    reads = dict.fromkeys(v for n in nodes for v in operands(n) if v.producer() not in inside)
    writes = [v for n in nodes for v in n.outputs if v in names and placement.crosses(v)]
    inputs, outputs = (sorted(values, key=lambda v: names[v]) for values in (reads, writes))
    builder = SegmentBuilder(placement.symbols, {v: names[v] for v in (*inputs, *outputs)}, inputs)
    for node in nodes:
        builder.add(node)
    return Segment(
        title,
        builder.graph(outputs, title, opset),
        tuple(names[v] for v in inputs),
        tuple(names[v] for v in outputs),
        tuple(_op_call(node, placement.symbols, names) for node in ops),
        float32_only=of_time,
    )


def _op_call(node: ir.Node, symbols: Symbols, names: Mapping[ir.Value, str]) -> OpCall:
    q, k, v = node.inputs
    assert q is not None and k is not None and v is not None
    height, width = symbols.height_and_width(q, 1)
    return OpCall(
        int_attribute(node, "layer"),
        int_attribute(node, "num_heads"),
        tuple(names[value] for value in (q, k, v)),
        tuple(names[value] for value in node.outputs),
        height,
        width,
    )
