"""The UNet traced as one graph, with its dimensions in the names of `ebca.engines.dims`: what is cut into segments, and
what the two uncut forms, `ebca.export.vanilla` and `ebca.export.whole`, are made of."""

import onnx_ir as ir
from diffusers import UNet2DConditionModel

from ebca.export.split import fold_transposes
from ebca.export.symbols import Symbols
from ebca.export.trace import trace


def uncut(unet: UNet2DConditionModel) -> tuple[ir.Model, Symbols]:
    """`trace` with transposed weights folded, and the translation of its dimensions."""
    model = trace(unet)
    fold_transposes(model)
    sample, timestep, contexts = model.graph.inputs
    symbols = Symbols(
        [
            (sample, {0: "batch", 2: "height", 3: "width"}),
            (timestep, {0: "batch"}),
            (contexts, {0: "batch", 1: "contexts", 2: "tokens"}),
        ]
    )
    return model, symbols


def name_dimensions(graph: ir.Graph, symbols: Symbols) -> None:
    """Give inputs and outputs shapes in our names, and all other values none: engines infer them again."""
    named = {value: symbols.shape(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for value, shape in named.items():
        value.shape = ir.Shape(shape)
