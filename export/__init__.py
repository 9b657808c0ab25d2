"""Checkpoint to engine directory. PyTorch is imported in this folder only, and only when a function is called.

    checkpoint/    load a model from the hub, a folder, a single file, or built in
    graph/         trace a UNet, split it, convert to float16, lower, write a graph as a component
    plans/         what TensorRT plans are built for, and the library that builds them
    stages/        the parts of an export, each `Context -> StageResult`, and their order
    cli/           ebca-export
    api            export_checkpoint, export_unet
    options        what an export is asked for, and every rule about it
    parity         components against PyTorch
    workspace      the folder of an unfinished export, and what is finished in it

Imports point one way: options, plans -> checkpoint, graph -> parity, weights, workspace -> stages -> api -> cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def export_unet(
    unet_or_folder: UNet2DConditionModel | str | Path, output_dir: str | Path, *, precision: str = "fp32"
) -> Path:
    """Export a UNet alone, see `ebca.export.api.export_unet`."""
    from ebca.export import api

    return api.export_unet(unet_or_folder, output_dir, precision=precision)
