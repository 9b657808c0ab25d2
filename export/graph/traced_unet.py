"""A traced UNet with its dimensions in the names of `ebca.engines.contract.dims`.

It is traced once, which is most of the time of an export. The segments, the full UNet (`ebca.export.graph.full_unet`)
and the full UNet with updates (`ebca.export.graph.full_unet_updates`) are each made from a copy.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import onnx_ir as ir
from diffusers import UNet2DConditionModel
from torch import nn

from ebca.engines.contract.dims import Dim
from ebca.export.graph.fold import fold_transposes
from ebca.export.graph.kept_trace import Keep, not_kept
from ebca.export.graph.op_node import INPUTS
from ebca.export.graph.symbols import Symbols
from ebca.export.graph.trace import Layer, input_names, layers_of, native_side, trace


@dataclass(frozen=True)
class TracedUNet:
    """One trace, its symbols, and what the graph does not say about the UNet.

    `inputs` names those without the residuals of ControlNets.
    """

    model: ir.Model
    symbols: Symbols
    layers: list[Layer]
    sample_size: int
    inputs: tuple[str, ...] = INPUTS

    @classmethod
    def of(cls, unet: UNet2DConditionModel, keep: Keep = not_kept, *, controlled: bool = False) -> Self:
        """`trace`, with transposed weights folded."""
        # Under the name that the trace knows the UNet by.
        model = keep(nn.ModuleDict({"unet": unet}), partial(trace, unet, controlled=controlled))
        fold_transposes(model)
        inputs = input_names(unet)
        sample, timestep, contexts, *added = model.graph.inputs[: len(inputs)]
        symbols = Symbols(
            [
                (sample, {0: "batch", 2: "height", 3: "width"}),
                (timestep, {0: "batch"}),
                (contexts, {0: "batch", 1: "contexts", 2: "tokens"}),
                *((value, {0: "batch"}) for value in added),
            ]
        )
        return cls(model, symbols, layers_of(unet), native_side(unet), inputs)

    @property
    def controls(self) -> dict[str, tuple[Dim, ...]]:
        """Shapes of the inputs that ControlNets write, by name; none unless it was traced with them."""
        return {str(value.name): self.symbols.shape(value) for value in self.model.graph.inputs[len(self.inputs) :]}

    def copy(self) -> ir.Model:
        """A graph that the caller may change; it shares the weights."""
        return self.model.clone()

    def name_dimensions(self, graph: ir.Graph) -> None:
        """Give the values of a copy shapes in our names. Raises ExportError for an input or output without one."""
        self.symbols.name_dimensions(graph)
