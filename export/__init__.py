"""Checkpoint to engine directory. PyTorch lives here and only here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def export_unet(
    unet_or_folder: UNet2DConditionModel | str | Path, output_dir: str | Path, *, precision: str = "fp32"
) -> Path:
    """Export a UNet alone, see `ebca.export.engine.export_unet`. PyTorch is imported by the call, not before."""
    from ebca.export import engine

    return engine.export_unet(unet_or_folder, output_dir, precision=precision)
