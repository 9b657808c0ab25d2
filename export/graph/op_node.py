"""The custom node that stands for energy cross attention in a traced UNet, and the names of the UNet's tensors."""

import onnx_ir as ir

OPSET = 23
OP_DOMAIN = "ebca"
OP_TYPE = "EnergyCrossAttention"
INPUTS = ("sample", "timestep", "contexts")
OUTPUTS = ("noise", "contexts_out")


def is_op(node: ir.Node) -> bool:
    """Whether a node is energy cross attention, where the UNet is cut."""
    return node.domain == OP_DOMAIN and node.op_type == OP_TYPE


def int_attribute(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()
