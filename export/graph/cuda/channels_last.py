"""Images between segments with their channels last, for a backend that computes so.

A convolution of ONNX Runtime's CUDA provider reads [B,h,w,C]. Tensors that cross a boundary in this form need no
Transpose before and after it.
"""

from collections.abc import Collection, Sequence

import onnx_ir as ir

from ebca.engines.contract.dims import Dim
from ebca.engines.contract.tensors import TO_CHANNELS_FIRST, TO_CHANNELS_LAST


def is_image(shape: Sequence[Dim]) -> bool:
    """Whether a tensor between segments is an image, [B,C,h,w]; keys [B,S,T,C] and embeddings [B,C,1,1] are none."""
    return len(shape) == 4 and str(shape[2]).startswith("height") and str(shape[3]).startswith("width")


def channels_last(graph: ir.Graph, names: Collection[str]) -> None:
    """Make the inputs and outputs of these names [B,h,w,C], in place."""
    for value in graph.inputs:
        if value.name in names:
            uses = list(value.uses())
            inner = ir.Value(name=f"{value.name}.channels_first", shape=value.shape, type=value.type)
            node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", TO_CHANNELS_FIRST)], outputs=[inner])
            graph.insert_before(graph[0], node)
            for user, index in uses:
                user.replace_input_with(index, inner)
            value.shape = _moved(value)
    for index, value in enumerate(list(graph.outputs)):
        if value.name in names:
            outer = ir.Value(name=value.name, shape=_moved(value), type=value.type)
            value.name = f"{value.name}.channels_first"
            graph.append(ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", TO_CHANNELS_LAST)], outputs=[outer]))
            graph.outputs[index] = outer


def _moved(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    dims = list(value.shape)
    return ir.Shape([dims[axis] for axis in TO_CHANNELS_LAST])
