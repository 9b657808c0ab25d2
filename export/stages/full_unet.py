"""The full UNet as one component: without updates, and with them."""

from functools import partial

from ebca.export.graph.full_unet import full_unet_graph
from ebca.export.graph.full_unet_updates import context_steps, full_unet_updates_graph
from ebca.export.stages import component
from ebca.export.stages.component import ComponentJob
from ebca.export.stages.context import Context, StageResult
from ebca.export.stages.unet_inputs import UNetInputs
from ebca.export.weights import stored_bytes

# The names in engine directories.
NAME = "vanilla"
NAME_WITH_UPDATES = "whole"


def export(context: Context, inputs: UNetInputs) -> StageResult:
    """Write the full UNet without updates."""
    unet = context.checkpoint.unet
    job = ComponentJob(
        NAME,
        f"unet/{NAME}",
        "full UNet",
        stored_bytes(unet.parameters(), context.options),
        partial(full_unet_graph, inputs.traced),
        partial(inputs.reference.full_unet_error, unet),
        computes_half=context.options.computes_half,
    )
    return component.write(context, job)


def export_with_updates(context: Context, inputs: UNetInputs) -> StageResult:
    """Write the full UNet with updates."""
    job = ComponentJob(
        NAME_WITH_UPDATES,
        f"unet/{NAME_WITH_UPDATES}",
        "full UNet with updates",
        stored_bytes(context.checkpoint.unet.parameters(), context.options),
        partial(full_unet_updates_graph, inputs.traced),
        inputs.reference.full_unet_updates_error,
        computes_half=context.options.computes_half,
        keep=context_steps,
    )
    return component.write(context, job)
