"""What all stages of the UNet share."""

from dataclasses import dataclass
from typing import Self

from ebca.export.graph.trace import layers_of
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.parity import UNetReference
from ebca.export.stages import traces
from ebca.export.stages.context import Context


@dataclass(frozen=True)
class UNetInputs:
    """The UNet's trace and its results in PyTorch. Both take long, so they are made once per export."""

    traced: TracedUNet
    reference: UNetReference

    @classmethod
    def of(cls, context: Context) -> Self:
        """Trace the UNet, unless an interrupted export has, and run it."""
        unet, controlled = context.checkpoint.unet, bool(context.checkpoint.controlnets)
        context.report(f"tracing the UNet ({len(layers_of(unet))} cross-attention layers)")
        traced = TracedUNet.of(unet, traces.keeper(context, "unet"), controlled=controlled)
        context.report("running the UNet in PyTorch for comparison")
        return cls(traced, UNetReference.of(unet, traced.controls))
