"""Which text encoders, VAEs and schedulers can be exported, decided by their configurations alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.activations import ACT2FN

from ebca.errors import ModelError
from ebca.export.checkpoint import fields
from ebca.export.checkpoint.fields import (
    ABSENT,
    ACTIVATION,
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    TEXT,
    Kind,
    check_fields,
    list_of,
    one_of,
    optional,
    unsupported,
)
from ebca.export.checkpoint.supported import context_width, pooled_width

_WHOLE = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
_BETA = Kind("a number from 0 to 1", lambda value: fields.is_number(value) and 0 <= value < 1)
_THREE = Kind("3, for red, green and blue", lambda value: fields.is_count(value) and value == 3)

_TEXT_ENCODER: dict[str, Kind] = {
    "vocab_size": COUNT,
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "max_position_embeddings": COUNT,
    "projection_dim": COUNT,
    "hidden_act": Kind(
        "an activation of transformers, such as quick_gelu", lambda value: isinstance(value, str) and value in ACT2FN
    ),
    "layer_norm_eps": POSITIVE,
    "eos_token_id": Kind("the number of a token", lambda value: value == 0 or fields.is_count(value)),
}

_VAE: dict[str, Kind] = {
    "in_channels": _THREE,
    "out_channels": _THREE,
    "down_block_types": list_of(one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    "up_block_types": list_of(one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    "block_out_channels": list_of(COUNT),
    "layers_per_block": COUNT,
    "act_fn": ACTIVATION,
    "latent_channels": COUNT,
    "norm_num_groups": COUNT,
    "sample_size": Kind(
        "a whole number above 0",
        lambda value: fields.is_count(value) or list_of(COUNT, 2).accepts(value),
    ),
    "scaling_factor": POSITIVE,
    "shift_factor": optional(NUMBER),
    # One mean and deviation per channel instead of `scaling_factor`, which no pipeline of Stable Diffusion 1.x reads.
    "latents_mean": ABSENT,
    "latents_std": ABSENT,
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
}

_PREVIEW_VAE: dict[str, Kind] = {
    "out_channels": _THREE,
    "latent_channels": COUNT,
    "decoder_block_out_channels": list_of(COUNT),
    "num_decoder_blocks": list_of(COUNT),
    "upsampling_scaling_factor": COUNT,
    "act_fn": ACTIVATION,
    "scaling_factor": POSITIVE,
}

_SCHEDULER: dict[str, Kind] = {
    "_class_name": TEXT,
    "num_train_timesteps": COUNT,
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": TEXT,
    "trained_betas": optional(list_of(_BETA)),
    "prediction_type": TEXT,
    "timestep_spacing": TEXT,
    "steps_offset": _WHOLE,
    "rescale_betas_zero_snr": FLAG,
    "set_alpha_to_one": FLAG,
    "skip_prk_steps": FLAG,
}


def check_text_encoders_supported(configs: Sequence[Mapping[str, Any]], unet_config: Mapping[str, Any]) -> None:
    """Raise ModelError unless these are CLIP text encoders that together are as wide as the UNet's context.

    A projection on top is allowed, and only used of the second one, whose width is that of the UNet's pooled embedding.

    Args:
        configs: one, or the two of Stable Diffusion XL in order.
        unet_config: of a UNet that is supported.
    """
    for config in configs:
        _check_text_encoder(config)
    widths = [int(config.get("hidden_size", 512)) for config in configs]
    context = context_width(unet_config)
    if sum(widths) != context:
        shown = " + ".join(map(str, widths))
        raise ModelError(
            f"unsupported text encoder: hidden_size = {shown}, but the UNet's cross_attention_dim is {context}"
        )
    if len(configs) == 1:
        return
    for config in configs:
        layers = config.get("num_hidden_layers", 12)
        if layers < 2:
            raise unsupported("text encoder", "num_hidden_layers", layers, "the UNet reads the layer before the last")
    lengths = [config.get("max_position_embeddings", 77) for config in configs]
    if lengths[0] != lengths[1]:
        raise unsupported(
            "text encoder", "max_position_embeddings", lengths[1], f"that of the first text encoder is {lengths[0]}"
        )
    projection, pooled = configs[1].get("projection_dim", 512), pooled_width(unet_config)
    if projection != pooled:
        raise unsupported("text encoder", "projection_dim", projection, f"the UNet takes {pooled} values")


def _check_text_encoder(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures") or ["CLIPTextModel"]
    if architectures not in (["CLIPTextModel"], ["CLIPTextModelWithProjection"]):
        shown = architectures[0] if fields.is_list(architectures) else architectures
        raise ModelError(f"unsupported text encoder: {shown}", "only CLIPTextModel is supported")
    check_fields(config, _TEXT_ENCODER, "text encoder")
    width, heads = config.get("hidden_size", 512), config.get("num_attention_heads", 8)
    if width % heads:
        raise unsupported("text encoder", "num_attention_heads", heads, f"it must divide hidden_size = {width}")


def check_vae_supported(config: Mapping[str, Any], latent_channels: int) -> None:
    """Raise ModelError unless this is an AutoencoderKL of images in three channels, for latents as the UNet's."""
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ModelError(f"unsupported VAE: {kind}", "only AutoencoderKL is supported")
    check_fields(config, _VAE, "VAE")
    channels = config.get("latent_channels", 4)
    if channels != latent_channels:
        raise unsupported("VAE", "latent_channels", channels, f"the UNet's out_channels is {latent_channels}")
    blocks = len(config.get("block_out_channels", (64,)))
    for name in ("down_block_types", "up_block_types"):
        if len(config.get(name, ("",))) != blocks:
            raise unsupported("VAE", name, config.get(name), f"block_out_channels has {blocks}, give as many")


def check_preview_vae_supported(config: Mapping[str, Any], latent_channels: int) -> None:
    """Raise ModelError unless this is an AutoencoderTiny of images in three channels, for latents as the UNet's."""
    kind = config.get("_class_name")
    if kind != "AutoencoderTiny":
        raise ModelError(f"unsupported decoder of previews: {kind}", "only AutoencoderTiny is supported")
    check_fields(config, _PREVIEW_VAE, "decoder of previews")
    channels = config.get("latent_channels", 4)
    if channels != latent_channels:
        raise unsupported(
            "decoder of previews", "latent_channels", channels, f"the UNet's out_channels is {latent_channels}"
        )


def check_scheduler_supported(config: Mapping[str, Any]) -> None:
    """Raise ModelError for a field that no scheduler of diffusers takes."""
    check_fields(config, _SCHEDULER, "scheduler")
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != steps:
        raise unsupported("scheduler", "trained_betas", betas, f"give {steps} numbers, one per training timestep")
