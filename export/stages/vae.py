"""The VAE: its decoder, its encoder, and a small decoder for previews."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from ebca.engines.contract.manifest import VaeSpec
from ebca.export.graph.kept_trace import Keep
from ebca.export.graph.modules import (
    PreviewDecoder,
    VaeDecoder,
    VaeEncoder,
    downscale,
    preview_decoder_graph,
    vae_decoder_graph,
    vae_encoder_graph,
)
from ebca.export.stages import component, traces
from ebca.export.stages.component import ComponentJob, measure_module
from ebca.export.stages.context import Context, StageResult
from ebca.export.weights import stored_bytes

DECODER, ENCODER, PREVIEW = "vae_decoder", "vae_encoder", "vae_preview"

# Of the latents that both are compared at; not square.
_HEIGHT, _WIDTH = 16, 12

_QUANTISER = {"decoder": "post_quant_conv", "encoder": "quant_conv"}


def export(context: Context) -> StageResult:
    """Write decoder and encoder, if the checkpoint has a VAE."""
    vae = context.checkpoint.vae
    if vae is None:
        return StageResult()
    factor, config = downscale(vae), vae.config
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, config.latent_channels, _HEIGHT, _WIDTH), np.float32)
    if context.options.computes_half:
        # If float16 overflows, it does so at the size that unscaled latents have.
        latents /= np.float32(config.scaling_factor)
    half = _computes_half(context, vae)
    image = rng.uniform(-1, 1, (1, config.in_channels, _HEIGHT * factor, _WIDTH * factor)).astype(np.float32)
    jobs = [
        _job(context, "decoder", VaeDecoder(vae), vae_decoder_graph, latents, computes_half=half),
        _job(context, "encoder", VaeEncoder(vae), vae_encoder_graph, image, computes_half=half),
    ]
    spec = VaeSpec(
        DECODER,
        ENCODER,
        latent_channels=int(config.latent_channels),
        scaling_factor=float(config.scaling_factor),
        shift_factor=float(config.get("shift_factor") or 0.0),
        downscale=factor,
        preview=PREVIEW if context.checkpoint.preview_vae is not None else None,
    )
    if context.checkpoint.preview_vae is not None:
        jobs.append(_preview_job(context, context.checkpoint.preview_vae))
    return component.write_all(context, jobs).joined(StageResult(sections={"vae": spec}))


def _computes_half(context: Context, vae: AutoencoderKL) -> bool:
    """Whether the VAE computes in float16. That of Stable Diffusion XL says in its configuration whether it can."""
    if not context.options.computes_half or context.options.vae_float32:
        return False
    if context.checkpoint.is_xl and vae.config.get("force_upcast"):
        warnings.warn(
            "the VAE says that it overflows float16 (force_upcast), so it computes in float32; a folder of one that "
            "does not can be given with --vae",
            stacklevel=2,
        )
        return False
    return True


def _preview_job(context: Context, vae: AutoencoderTiny) -> ComponentJob:
    # Unit variance, which it clips to a few units.
    latents = np.random.default_rng(1).standard_normal((1, vae.config.latent_channels, _HEIGHT, _WIDTH), np.float32)
    return ComponentJob(
        PREVIEW,
        PREVIEW,
        "decoder of previews",
        stored_bytes(vae.decoder.parameters(), context.options),
        partial(preview_decoder_graph, vae, traces.keeper(context, PREVIEW)),
        measure_module(PreviewDecoder(vae), latents),
        computes_half=context.options.computes_half,
    )


def _job(
    context: Context,
    side: str,
    module: nn.Module,
    graph: Callable[[AutoencoderKL, Keep], ir.Graph],
    example: np.ndarray,
    *,
    computes_half: bool,
) -> ComponentJob:
    vae, options = context.checkpoint.vae, context.options
    assert vae is not None
    prefixes = (f"{side}.", f"{_QUANTISER[side]}.")
    return ComponentJob(
        f"vae_{side}",
        f"vae_{side}",
        f"vae {side}",
        stored_bytes((p for n, p in vae.named_parameters() if n.startswith(prefixes)), options),
        partial(graph, vae, traces.keeper(context, f"vae_{side}")),
        measure_module(module, example),
        computes_half=computes_half,
        overflow="the VAE overflows float16: let it compute in float32 with --vae-fp32" if computes_half else None,
    )
