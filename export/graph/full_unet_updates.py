"""The full UNet with its energy updates as one graph, each op a node that TensorRT's parser maps to a plugin.

With plugins, nothing has to run between segments: one plan does a complete evaluation of the variant "update".
`ebca.plugins.energy_attention.tensorrt_plugin` is the plugin. For ONNX Runtime, `ebca.export.graph.lower` replaces the
node by standard operators.
"""

import onnx_ir as ir

from ebca.export.graph.op_node import OP_DOMAIN, OP_TYPE, int_attribute, is_op
from ebca.export.graph.traced_unet import TracedUNet
from ebca.plugins.energy_attention import signature
from ebca.plugins.energy_attention.tensorrt_plugin import Settings

VARIANT = "update"


def full_unet_updates_graph(traced: TracedUNet) -> ir.Graph:
    """The UNet's inputs and the controls of the variant -> noise, and the contexts [B,S,T,D] after the last layer;
    float32, with one node of domain `ebca` per cross-attention layer."""
    graph, layers = traced.copy().graph, traced.layers
    traced.name_dimensions(graph)
    controls = _controls(graph)
    for node in [n for n in graph if is_op(n)]:
        index = int_attribute(node, "layer")
        settings = Settings(layers[index].heads, layers[index].head_dim, VARIANT)
        attributes = ir.convenience.convert_attributes(settings.attributes)
        call = ir.Node(
            OP_DOMAIN, OP_TYPE, [*node.inputs, *controls], attributes, num_outputs=2, name=f"layer_{index:02}"
        )
        for old, new, role in zip(node.outputs, call.outputs, ("out", "g"), strict=True):
            new.type, new.name = old.type, f"layer_{index:02}.{role}"
        ir.convenience.replace_nodes_and_values(graph, node, [node], [call], node.outputs, call.outputs)
    return graph


def context_steps(graph: ir.Graph) -> list[str]:
    """The ops' steps g, whose products with Wk stay in float32 (`keep` of `ebca.export.graph.half.to_half`)."""
    return [str(node.outputs[1].name) for node in graph if is_op(node)]


def _controls(graph: ir.Graph) -> list[ir.Value]:
    """Inputs for what the op reads beside q, k and v, in its order, shared by all layers."""
    specs = list(signature(VARIANT, 1, 1).inputs.items())[3:]
    values = [
        ir.Value(name=name, shape=ir.Shape(spec.shape), type=ir.TensorType(ir.DataType.FLOAT)) for name, spec in specs
    ]
    graph.inputs.extend(values)
    return values
