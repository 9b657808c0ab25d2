"""Inputs of a traced graph whose shape is that of a tensor inside.

torch would have to be told in advance how the sizes of such an input follow from those of the others. Instead the trace
gets a node that takes the tensor and stands for the input, and the node is replaced afterwards.
"""

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from ebca.export.graph.op_node import OP_DOMAIN

_OP_TYPE = "LateInput"


class LateInput:
    """What a network adds to one of its tensors while it is traced: `tensor + LateInput(name)`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __radd__(self, tensor: Any) -> Tensor:
        stand_in = torch.onnx.ops.symbolic(
            f"{OP_DOMAIN}::{_OP_TYPE}",
            (tensor,),
            {"name": self._name},
            dtype=tensor.dtype,
            shape=tensor.shape,
            version=1,
        )
        return tensor + stand_in


def bring_in(model: ir.Model) -> None:
    """Replace the nodes that stand for late inputs by inputs of the graph, after the others, in the nodes' order."""
    graph = model.graph
    for node in [n for n in graph if n.domain == OP_DOMAIN and n.op_type == _OP_TYPE]:
        stand_in = node.outputs[0]
        name = node.attributes["name"].as_string()
        value = ir.Value(name=name, shape=stand_in.shape, type=stand_in.type)
        ir.convenience.replace_all_uses_with(stand_in, value)
        graph.inputs.append(value)
        graph.remove(node)
