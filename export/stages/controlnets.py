"""ControlNets beside the UNet: two components each, see `ebca.export.graph.controlnet`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel

from ebca.engines.contract import dims
from ebca.engines.contract.accuracy import relative_l2
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.manifest import Component, ControlNetSpec
from ebca.errors import ExportError, ParameterError
from ebca.export.checkpoint.controlnet_supported import check_controlnet_fits
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.graph.controlnet import (
    BEFORE,
    HINT,
    SCALE,
    ControlledResiduals,
    HintEncoder,
    encoded_hint,
    hint_downscale,
    hint_graph,
    residuals_graph,
)
from ebca.export.graph.modules import downscale
from ebca.export.graph.op_node import INPUTS
from ebca.export.graph.trace import context_width
from ebca.export.graph.traced_unet import TracedUNet
from ebca.export.options import ExportOptions
from ebca.export.parity import run_component
from ebca.export.plans.shapes import PIXELS_PER_LATENT
from ebca.export.stages import component, traces
from ebca.export.stages.component import ComponentJob, measure_module
from ebca.export.stages.context import Context, StageResult
from ebca.export.weights import stored_bytes

# At which they are compared; not square.
_SIZES = {"batch": 2, "contexts": 2, "tokens": 77, "height": 16, "width": 12}
_TIMESTEP, _SCALE = 500.0, 0.75


def check_controlnets(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Refuse ControlNets that do not fit, before anything is written.

    Raises:
        ModelError: one is for another UNet.
        ExportError: one reads images of another size than the VAE makes.
        ParameterError: an option excludes ControlNets.
    """
    if not checkpoint.controlnets:
        return
    if options.with_full_unet or options.with_full_unet_updates:
        raise ParameterError(
            "an engine with ControlNets runs its UNet in segments only", "leave the full UNet or the ControlNets out"
        )
    if options.plans is not None:
        raise ParameterError("plans are not built for ControlNets", "export without plans, for onnxruntime-cuda")
    pixels = PIXELS_PER_LATENT if checkpoint.vae is None else downscale(checkpoint.vae)
    for name, controlnet in checkpoint.controlnets.items():
        config = {"_class_name": type(controlnet).__name__, **controlnet.config}
        check_controlnet_fits(config, checkpoint.unet.config)
        if hint_downscale(controlnet) != pixels:
            raise ExportError(
                f"the ControlNet '{name}' reads {hint_downscale(controlnet)} pixels per latent and side, and the VAE "
                f"makes {pixels}",
                "take the ControlNet that was made for this model",
            )


def export(context: Context, traced: TracedUNet) -> StageResult:
    """Write every ControlNet of the checkpoint.

    Raises:
        ExportError: an error against PyTorch is above its limit, or a weight does not fit float16.
    """
    jobs: list[ComponentJob] = []
    specs: dict[str, ControlNetSpec] = {}
    for name, controlnet in context.checkpoint.controlnets.items():
        specs[name] = ControlNetSpec(f"controlnet_{name}", f"controlnet_{name}_hint", hint_downscale(controlnet))
        jobs += [_hint_job(context, name, controlnet), _job(context, name, controlnet, traced)]
    return component.write_all(context, jobs).joined(StageResult(sections={"controlnets": specs}))


def _hint_job(context: Context, name: str, controlnet: ControlNetModel) -> ComponentJob:
    factor = hint_downscale(controlnet)
    shape = 1, 3, _SIZES["height"] * factor, _SIZES["width"] * factor
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    full = f"controlnet_{name}_hint"
    return ComponentJob(
        full,
        f"controlnet/{name}_hint",
        f"ControlNet '{name}', image",
        stored_bytes(controlnet.controlnet_cond_embedding.parameters(), context.options),
        partial(hint_graph, controlnet, traces.keeper(context, full)),
        measure_module(HintEncoder(controlnet), image),
        computes_half=context.options.computes_half,
    )


def _job(context: Context, name: str, controlnet: ControlNetModel, traced: TracedUNet) -> ComponentJob:
    full, channels = f"controlnet_{name}", context.checkpoint.unet.config.in_channels
    embedding = stored_bytes(controlnet.controlnet_cond_embedding.parameters(), context.options)
    return ComponentJob(
        full,
        f"controlnet/{name}",
        f"ControlNet '{name}'",
        stored_bytes(controlnet.parameters(), context.options) - embedding,
        partial(residuals_graph, controlnet, channels, tuple(traced.controls), traces.keeper(context, full)),
        partial(_error, controlnet, channels, traced.controls),
        computes_half=context.options.computes_half,
    )


def _error(
    controlnet: ControlNetModel,
    channels: int,
    residuals: Mapping[str, tuple[Dim, ...]],
    written: Component,
    folder: Path,
) -> float:
    """The largest error of a residual against PyTorch."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    batch, contexts, tokens, height, width = _SIZES.values()
    feeds: dict[str, np.ndarray] = {
        "sample": normal(batch, channels, height, width),
        "timestep": np.full(batch, _TIMESTEP, np.float32),
        "contexts": normal(batch, contexts, tokens, context_width(controlnet)),
        SCALE: np.array(_SCALE, np.float32),
        HINT: normal(batch, controlnet.config.block_out_channels[0], height, width),
    }
    before = {name: normal(*dims.shape(shape, _SIZES)) for name, shape in residuals.items()}
    module = ControlledResiduals(controlnet, [torch.from_numpy(one) for one in before.values()])
    with encoded_hint(controlnet, torch.from_numpy(feeds[HINT])), torch.no_grad():
        expected = module(*(torch.from_numpy(feeds[name]) for name in (*INPUTS, SCALE)))
    made = run_component(written, folder, {**feeds, **{BEFORE + name: one for name, one in before.items()}})
    return max(relative_l2(made[name], one.numpy()) for name, one in zip(residuals, expected, strict=True))
