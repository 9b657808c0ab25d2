"""A ControlNet as two graphs: one encodes its image, once per run, and the other runs at each evaluation.

The second takes what the UNet takes, reads context 0 only, and adds its scaled residuals to those of the ControlNets
before it. So any number of them is a chain of calls, and no other code adds anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ebca.export.graph.exporting import exported
from ebca.export.graph.fold import fold_transposes
from ebca.export.graph.kept_trace import Keep, not_kept
from ebca.export.graph.late_input import LateInput, bring_in
from ebca.export.graph.modules import trace_module
from ebca.export.graph.op_node import INPUTS
from ebca.export.graph.symbols import Symbols
from ebca.export.graph.trace import StandardAttention, context_width

HINT, SCALE = "hint", "scale"
BEFORE = "before_"
"""What the name of a residual begins with where a ControlNet reads those before it."""


class HintEncoder(nn.Module):
    """Image [batch,3,8*height,8*width] in [0, 1] -> what the ControlNet adds to its first tensor."""

    def __init__(self, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.embedding = controlnet.controlnet_cond_embedding
        self.flipped = controlnet.config.controlnet_conditioning_channel_order == "bgr"

    def forward(self, image: Tensor) -> Tensor:
        encoded: Tensor = self.embedding(torch.flip(image, dims=[1]) if self.flipped else image)
        return encoded


class _Hint(nn.Module):
    """Stands for the hint encoder of a ControlNet, and returns what it has been given instead."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: Tensor) -> object:
        return self.value


class ControlledResiduals(nn.Module):
    """(sample, timestep, contexts, scale) -> the residuals `before` plus those of a ControlNet times the scale.

    The sample is the UNet's, which may have more channels than the ControlNet reads.
    """

    def __init__(self, controlnet: ControlNetModel, before: Sequence[object]) -> None:
        super().__init__()
        self.controlnet = controlnet
        self.before = before

    def forward(self, sample: Tensor, timestep: Tensor, contexts: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        # The hint is encoded already.
        unused = torch.zeros(1, 1, 1, 1)
        latents = sample[:, : self.controlnet.config.in_channels]
        down, middle = self.controlnet(latents, timestep, contexts[:, 0], unused, scale, return_dict=False)
        return tuple(made + before for made, before in zip((*down, middle), self.before, strict=True))


@contextmanager
def encoded_hint(controlnet: ControlNetModel, hint: object) -> Iterator[None]:
    """The ControlNet with a hint that is encoded already; its own encoder is restored at the end of the block."""
    encoder = controlnet.controlnet_cond_embedding
    controlnet.controlnet_cond_embedding = _Hint(hint)
    try:
        yield
    finally:
        controlnet.controlnet_cond_embedding = encoder


def hint_graph(controlnet: ControlNetModel, keep: Keep = not_kept) -> ir.Graph:
    """One graph: image -> hint. `keep` may have the trace already."""
    config, factor = controlnet.config, hint_downscale(controlnet)
    channels, dynamic = config.conditioning_channels, torch.export.Dim.DYNAMIC
    return trace_module(
        HintEncoder(controlnet),
        (torch.zeros(2, channels, 9 * factor, 11 * factor),),
        ({0: dynamic, 2: dynamic, 3: dynamic},),
        [("image", ("batch", channels, f"{factor}*height", f"{factor}*width"))],
        [(HINT, ("batch", config.block_out_channels[0], "height", "width"))],
        keep,
    )


def residuals_graph(
    controlnet: ControlNetModel, channels: int, names: Sequence[str], keep: Keep = not_kept
) -> ir.Graph:
    """One graph: sample, timestep, contexts, scale [], hint, and `before_...` for each residual -> the residuals.

    Args:
        controlnet: the ControlNet.
        channels: of the UNet's input.
        names: of the residuals.
        keep: may have the trace already.
    """
    model = keep(nn.ModuleDict({"controlnet": controlnet}), partial(_trace, controlnet, channels, names))
    fold_transposes(model)
    graph = model.graph
    sample, timestep, contexts = graph.inputs[:3]
    symbols = Symbols(
        [
            (sample, {0: "batch", 2: "height", 3: "width"}),
            (timestep, {0: "batch"}),
            (contexts, {0: "batch", 1: "contexts", 2: "tokens"}),
        ]
    )
    symbols.name_dimensions(graph)
    return graph


def hint_downscale(controlnet: ControlNetModel) -> int:
    """Pixels of the image per element of the hint, along each side."""
    return 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)


def _trace(controlnet: ControlNetModel, channels: int, names: Sequence[str]) -> ir.Model:
    module = ControlledResiduals(controlnet, [LateInput(BEFORE + name) for name in names])
    original = controlnet.attn_processors
    controlnet.set_attn_processor(StandardAttention())
    try:
        with encoded_hint(controlnet, LateInput(HINT)):
            size = 2 ** len(controlnet.config.block_out_channels) + 1
            example = (
                torch.zeros(2, channels, size, size + 2),
                torch.zeros(2),
                torch.zeros(2, 3, 7, context_width(controlnet)),
                torch.tensor(1.0),
            )
            dynamic = torch.export.Dim.DYNAMIC
            axes: tuple[tuple[int, ...], ...] = ((0, 2, 3), (0,), (0, 1, 2), ())
            shapes: Any = tuple(dict.fromkeys(of_input, dynamic) for of_input in axes)
            model = exported(module, example, shapes)
    finally:
        controlnet.set_attn_processor(original)
    for value, name in zip(model.graph.inputs, (*INPUTS, SCALE), strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name
    bring_in(model)
    return model
