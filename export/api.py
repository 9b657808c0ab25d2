"""The public calls: a checkpoint, or a UNet alone, becomes an engine directory."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from ebca.errors import ExportError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.supported import check_unet_supported
from ebca.export.distilled import with_embedded_guidance
from ebca.export.graph.modules import downscale
from ebca.export.options import ExportEvent, ExportOptions, OnProgress
from ebca.export.output import check_output, check_room, output_path
from ebca.export.plans.shapes import PIXELS_PER_LATENT
from ebca.export.stages import run, schedulers
from ebca.export.stages.context import Context
from ebca.export.stages.controlnets import check_controlnets
from ebca.export.weights import export_key, prepare_weights, total_bytes
from ebca.export.workspace import Workspace

# Graphs, tables, and what a file system adds.
_OVERHEAD_BYTES = 100 << 20


def export_checkpoint(
    checkpoint: Checkpoint,
    output_dir: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **changes: Any,
) -> Path:
    """Write an engine directory. `export_checkpoint(checkpoint, folder, precision="fp16")` is the usual form.

    Args:
        checkpoint: as `ebca.export.checkpoint.load.load_checkpoint` returns it. At precision fp16 its weights are
            rounded in place, so that parity compares equal weights.
        output_dir: the directory to make. An interrupted export of the same model is resumed.
        options: what to write; None for the defaults.
        overwrite: replace an engine that is there.
        on_progress: called before each piece of work. An exception that it raises ends the export.
        changes: fields of `ExportOptions` to change in `options`, by name.

    Returns:
        The engine directory.

    Raises:
        ExportError, ModelError, ParameterError: see `ebca.errors`. Nothing is left that could be taken for an engine.
    """
    options = replace(options or ExportOptions(), **changes)
    options.validate()
    output = output_path(output_dir)
    check_output(output, overwrite=overwrite)
    check_unet_supported(checkpoint.unet.config)
    check_controlnets(checkpoint, options)
    schedulers.check(checkpoint, options)
    checkpoint = with_embedded_guidance(checkpoint, options.guidance_scale)
    if options.plans and checkpoint.vae is not None and PIXELS_PER_LATENT % downscale(checkpoint.vae):
        raise ExportError(
            f"the VAE has {downscale(checkpoint.vae)} pixels per latent and side, and plans are built for sides in "
            f"multiples of {PIXELS_PER_LATENT}",
            "export without plans",
        )
    total = total_bytes(checkpoint, options)
    check_room(output, total + _OVERHEAD_BYTES)
    report = on_progress or (lambda event: None)
    report(ExportEvent("reading weights", 0, total))
    prepare_weights(checkpoint, options)
    workspace = Workspace(output, export_key(checkpoint, options), overwrite=overwrite)
    for notice in checkpoint.notices:
        warnings.warn(notice, stacklevel=2)
    try:
        context = Context(checkpoint, options, workspace, report, total)
        manifest = run.manifest(context, run.run(context))
        report(ExportEvent("done", total, total))
        return workspace.finish(manifest)
    except OSError as error:
        raise ExportError(
            f"cannot write to '{workspace.folder}': {error.strerror or error}",
            "finished parts are kept, run the same command again to resume",
        ) from None
    finally:
        if workspace.folder.is_dir():
            workspace.release()


def export_unet(
    unet_or_folder: UNet2DConditionModel | str | Path, output_dir: str | Path, *, precision: str = "fp32"
) -> Path:
    """Export a UNet alone: a diffusers object, or a folder in diffusers format (a UNet's, or a pipeline's).

    The result serves `ebca.Denoiser`, and sessions that are given embeddings and latents. Raises as
    `export_checkpoint`.
    """
    if isinstance(unet_or_folder, UNet2DConditionModel):
        name = Path(str(unet_or_folder.config.get("_name_or_path") or "unet")).name
        # Rounding to float16 happens in place and must not reach the caller's model.
        unet = _copy(unet_or_folder) if precision == "fp16" else unet_or_folder.float().eval()
        checkpoint = Checkpoint(name=name, unet=unet, source={"kind": "object", "id": name})
    else:
        loaded = load_checkpoint(str(unet_or_folder))
        checkpoint = replace(
            loaded, text_encoder=None, text_encoder_2=None, vae=None, tokenizer_json=None, tokenizer_info={}
        )
    return export_checkpoint(checkpoint, output_dir, precision=precision)


def _copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    twin = UNet2DConditionModel.from_config(unet.config).eval().requires_grad_(False)
    twin.load_state_dict(unet.state_dict())
    return twin
