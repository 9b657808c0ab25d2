"""The traced UNet, with its dimensions as in `ebca.engines.contract.dims`: what is cut into segments, and what the two
uncut forms, `ebca.export.vanilla` and `ebca.export.whole`, are made of."""

from dataclasses import dataclass
from typing import Self

import onnx_ir as ir
from diffusers import UNet2DConditionModel

from ebca.export.split import fold_transposes
from ebca.export.symbols import Symbols
from ebca.export.trace import Layer, layers_of, trace


@dataclass(frozen=True)
class Uncut:
    """One trace for all graphs that are made of it, each from a copy: tracing is most of the time of an export."""

    model: ir.Model
    symbols: Symbols
    layers: list[Layer]
    sample_size: int

    @classmethod
    def of(cls, unet: UNet2DConditionModel) -> Self:
        """`trace`, with transposed weights folded."""
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
        return cls(model, symbols, layers_of(unet), int(unet.config.sample_size))

    def copy(self) -> ir.Model:
        """To be changed; it shares the weights."""
        return self.model.clone()

    def name_dimensions(self, graph: ir.Graph) -> None:
        """Give inputs and outputs of a copy shapes in our names, and all other values none: engines infer them."""
        named = {value: self.symbols.shape(value) for value in (*graph.inputs, *graph.outputs)}
        for node in graph:
            for value in node.outputs:
                value.shape = None
        for value, shape in named.items():
            value.shape = ir.Shape(shape)
