"""GroupNormalization, of a sum or not, with or without SiLU, as ONNX Runtime's GroupNorm or SkipGroupNorm.

Both compute with channels last. The Transposes around them meet those around convolutions, and the provider removes
the pairs.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ebca.engines.contract.tensors import TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from ebca.export.graph.dtypes import FLOAT
from ebca.export.graph.op_node import int_attribute
from ebca.export.graph.rewriting import (
    MICROSOFT,
    cast,
    constant,
    epsilon,
    given,
    only_user,
    producer,
    rank,
    replace,
    same_shape,
    shape_of,
    summands,
    transpose,
)

# The kernel reads channels in pairs, and a group in one block.
_LARGEST_GROUP = 512


class _Operands(NamedTuple):
    """What a fused norm reads: x, what is added to it (None: nothing), and the nodes that make them channels last."""

    x: ir.Value
    skip: ir.Value | None
    nodes: list[ir.Node]


def fuse_group_norm(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    """GroupNormalization of this dtype -> GroupNorm, SkipGroupNorm, or operators that take every size."""
    if node.op_type != "GroupNormalization" or given(node)[0].dtype != dtype:
        return
    x, scale, bias = given(node)
    if rank(x) not in (3, 4) or not _takes(channels_of(node), int_attribute(node, "num_groups")):
        _decompose(graph, node, dtype)
        return
    silu = _silu(node.outputs[0]) if rank(x) == 4 else []
    operands = _operands(graph, x)
    # It takes the weights in float32 only, whatever the tensor is.
    weights = [cast(value, FLOAT) for value in (scale, bias)]
    skip = [] if operands.skip is None else [operands.skip]
    also_sum = bool(skip) and only_user(x) is not node
    fused = ir.Node(
        MICROSOFT,
        "SkipGroupNorm" if skip else "GroupNorm",
        [operands.x, *(made.outputs[0] for made in weights), *skip],
        [
            ir.AttrFloat32("epsilon", epsilon(node)),
            ir.AttrInt64("groups", int_attribute(node, "num_groups")),
            ir.AttrInt64("activation", int(bool(silu))),
            ir.AttrInt64("channels_last", 1),
        ],
        num_outputs=2 if also_sum else 1,
        name=node.name,
    )
    after = _channels_first(graph, fused.outputs[0], x)
    old, values = [node, *silu], {[node, *silu][-1].outputs[0]: after[-1].outputs[0]}
    add = producer(x, "Add")
    if skip and add is not None:
        old.insert(0, add)
    if also_sum:
        after.append(transpose(fused.outputs[1], TO_CHANNELS_FIRST))
        values[x] = after[-1].outputs[0]
    for made in (*operands.nodes, fused, *after):
        for value in made.outputs:
            value.type = ir.TensorType(dtype)
    nodes = [*weights, *operands.nodes, fused, *after]
    replace(graph, old[-1], old, nodes, list(values), list(values.values()))


def channels_of(node: ir.Node) -> int:
    """Number of channels of a GroupNormalization."""
    channels = shape_of(given(node)[1])[0]
    assert isinstance(channels, int)
    return channels


def _takes(channels: int, groups: int) -> bool:
    size = channels // groups
    return size % 2 == 0 and size <= _LARGEST_GROUP


def _operands(graph: ir.Graph, x: ir.Value) -> _Operands:
    if rank(x) == 3:
        wide = ir.Node("", "Unsqueeze", [x, _axes(graph, 3)])
        moved = transpose(wide.outputs[0], TO_CHANNELS_LAST)
        return _Operands(moved.outputs[0], None, [wide, moved])
    parts = _image_and_skip(x)
    if parts is None:
        moved = transpose(x, TO_CHANNELS_LAST)
        return _Operands(moved.outputs[0], None, [moved])
    image, skip = parts
    moved = transpose(image, TO_CHANNELS_LAST)
    if shape_of(skip)[2:] == (1, 1):
        # [B,C,1,1] -> [B,C] moves nothing.
        flat = ir.Node("", "Squeeze", [skip, _axes(graph, 2, 3)])
    else:
        flat = transpose(skip, TO_CHANNELS_LAST)
    return _Operands(moved.outputs[0], flat.outputs[0], [moved, flat])


def _image_and_skip(total: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The image [B,C,h,w] and what is added to it, [B,C,h,w] or [B,C,1,1]; None if a value is no such sum."""
    parts = summands(total)
    if parts is None or any(rank(part) != 4 for part in parts):
        return None
    for image, skip in (parts, parts[::-1]):
        broadcast = shape_of(skip)[1:] == (shape_of(total)[1], 1, 1)
        if same_shape(image, total) and (broadcast or same_shape(skip, total)):
            return image, skip
    return None


def _channels_first(graph: ir.Graph, value: ir.Value, like: ir.Value) -> list[ir.Node]:
    moved = transpose(value, TO_CHANNELS_FIRST)
    if rank(like) == 4:
        return [moved]
    return [moved, ir.Node("", "Squeeze", [moved.outputs[0], _axes(graph, 3)])]


def _axes(graph: ir.Graph, *axes: int) -> ir.Value:
    return constant(graph, "axes_" + "_".join(map(str, axes)), np.array(axes, np.int64))


def _silu(value: ir.Value) -> list[ir.Node]:
    """The nodes of x sigmoid(x), in order, if nothing else reads x; else none."""
    users = {node.op_type: node for node, _ in value.uses()}
    if len(value.uses()) != 2 or users.keys() != {"Sigmoid", "Mul"} or value.is_graph_output():
        return []
    sigmoid, product = users["Sigmoid"], users["Mul"]
    return [sigmoid, product] if only_user(sigmoid.outputs[0]) is product else []


def _decompose(graph: ir.Graph, node: ir.Node, result: ir.DataType) -> None:
    """GroupNormalization in operators that take every size: in float32, rounded once at the end."""
    x, scale, bias = given(node)
    channels, groups, dims = channels_of(node), int_attribute(node, "num_groups"), len(shape_of(x))
    grouped = constant(graph, f"grouped_{groups}", np.array([0, groups, -1], np.int64))
    tiny = constant(graph, f"epsilon_{epsilon(node):g}", np.array(epsilon(node), np.float32))
    spread = np.array((1, channels, *([1] * (dims - 2))), np.int64)
    per_channel = constant(graph, f"per_channel_{channels}_{dims}", spread)
    nodes: list[ir.Node] = []

    def do(op: str, *inputs: ir.Value, dtype: ir.DataType = FLOAT) -> ir.Value:
        nodes.append(ir.Node("", op, inputs))
        nodes[-1].outputs[0].type = ir.TensorType(dtype)
        return nodes[-1].outputs[0]

    def wide(value: ir.Value) -> ir.Value:
        nodes.append(cast(value, FLOAT))
        return nodes[-1].outputs[0]

    shape = do("Shape", x, dtype=ir.DataType.INT64)
    folded = do("Reshape", wide(x), grouped)
    centred = do("Sub", folded, do("ReduceMean", folded, _axes(graph, 2)))
    variance = do("ReduceMean", do("Mul", centred, centred), _axes(graph, 2))
    normalised = do("Reshape", do("Div", centred, do("Sqrt", do("Add", variance, tiny))), shape)
    scaled = do("Mul", normalised, do("Reshape", wide(scale), per_channel))
    shifted = do("Add", scaled, do("Reshape", wide(bias), per_channel))
    nodes.append(cast(shifted, result))
    replace(graph, node, [node], nodes, [node.outputs[0]], [nodes[-1].outputs[0]])
