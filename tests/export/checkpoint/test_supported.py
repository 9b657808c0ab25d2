"""Which models can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import edit_json

from ebca.errors import ModelError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.supported import check_unet_supported, context_width, sample_size
from ebca.export.checkpoint.supported_parts import (
    check_scheduler_supported,
    check_text_encoders_supported,
    check_vae_supported,
)
from ebca.export.checkpoint.tiny import TEXT_ENCODER_CONFIG, UNET_CONFIG, VAE_CONFIG


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "UNet2DModel"),
        ("addition_embed_type", "text"),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 1000),
        ("encoder_hid_dim", 4096),
        ("encoder_hid_dim_type", "text_proj"),
        ("cross_attention_norm", "layer_norm"),
        ("dual_cross_attention", True),
        ("only_cross_attention", True),
        ("only_cross_attention", [False, True]),
        ("mid_block_only_cross_attention", True),
        ("attention_type", "gated"),
        ("cross_attention_dim", [32, 64]),
        ("down_block_types", ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("in_channels", 7),
        # Values that diffusers stumbles over, or takes and computes something else.
        ("sample_size", None),
        ("sample_size", [8, 12]),
        ("sample_size", "16"),
        ("sample_size", 0),
        ("attention_head_dim", None),
        ("attention_head_dim", [8, None]),
        ("attention_head_dim", [8, 8, 8]),
        ("num_attention_heads", 8),
        ("layers_per_block", None),
        ("layers_per_block", [1]),
        ("layers_per_block", 0),
        ("cross_attention_dim", None),
        ("transformer_layers_per_block", [1, "two"]),
        ("reverse_transformer_layers_per_block", [1]),
        ("only_cross_attention", None),
        ("down_block_types", None),
        ("down_block_types", "CrossAttnDownBlock2D"),
        ("down_block_types", [["CrossAttnDownBlock2D"], "DownBlock2D"]),
        ("up_block_types", ["UpBlock2D"]),
        ("mid_block_type", ["UNetMidBlock2D"]),
        ("block_out_channels", 32),
        ("block_out_channels", [32, 64, 64]),
        ("in_channels", None),
        ("in_channels", "4"),
        ("out_channels", True),
        ("norm_num_groups", None),
        ("norm_num_groups", 7),
        ("downsample_padding", 0),
        ("conv_in_kernel", 2),
        ("resnet_time_scale_shift", "ada_group"),
        ("time_embedding_type", "learned"),
        ("act_fn", "elu"),
        ("norm_eps", float("nan")),
        ("class_embeddings_concat", True),
        ("upcast_attention", "yes"),
    ],
)
def test_unsupported_unets_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"unsupported UNet: {field} = ") as caught:
        check_unet_supported({**UNET_CONFIG, field: value})
    # Of a list of block types, the one that is not supported.
    shown = [value, *value] if isinstance(value, list) else [value]
    assert any(repr(each) in str(caught.value) for each in shown)
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_a_unet_without_cross_attention_is_refused() -> None:
    plain = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None}
    with pytest.raises(ModelError, match="no cross-attention"):
        check_unet_supported({**UNET_CONFIG, **plain})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True, "attention_head_dim": [5, 10], "upcast_attention": True},
        {"in_channels": 8},
        {"in_channels": 9},
        {"cross_attention_dim": [32, 32]},
        {"only_cross_attention": [False, False]},
        {"class_embed_type": None, "dual_cross_attention": False},
        {"sample_size": [16, 16], "layers_per_block": [1, 2], "mid_block_type": None},
        {"transformer_layers_per_block": [[1], [2]], "reverse_transformer_layers_per_block": [[2, 1], [1, 1]]},
        # What blocks without cross-attention say of it is ignored, as in diffusers.
        {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [None, 8],
            "cross_attention_dim": [None, 32],
        },
        {"something_new": 1},
    ],
)
def test_supported_unets_pass(changes: dict[str, Any]) -> None:
    check_unet_supported({**UNET_CONFIG, **changes})


def test_an_empty_configuration_means_the_defaults_of_diffusers() -> None:
    check_unet_supported({"sample_size": 64})
    assert context_width({}) == 1280


def test_a_width_or_a_size_that_is_said_several_times() -> None:
    assert context_width({**UNET_CONFIG, "cross_attention_dim": [32, 32]}) == 32
    assert sample_size({"sample_size": [64, 64]}) == 64


def test_the_configuration_of_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match=r"architectures = .*CLIPTextModel.*another network"):
        check_unet_supported({"architectures": ["CLIPTextModel"], "hidden_size": 768})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scaling_factor", None),
        ("scaling_factor", float("nan")),
        ("latent_channels", None),
        ("latent_channels", 16),
        ("block_out_channels", None),
        ("block_out_channels", [16, 32]),
        ("down_block_types", ["DownBlock2D"] * 4),
        ("sample_size", None),
        ("in_channels", 4),
        ("latents_mean", [0.0, 0.0, 0.0, 0.0]),
        ("use_quant_conv", None),
        ("norm_num_groups", None),
        ("layers_per_block", [1, 1, 1, 1]),
    ],
)
def test_unsupported_vaes_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match="unsupported VAE: ") as caught:
        check_vae_supported({**VAE_CONFIG, field: value}, 4)
    assert field in str(caught.value) and caught.value.remedy


def test_vaes_may_leave_fields_out() -> None:
    left_out = ("scaling_factor", "sample_size", "latent_channels")
    check_vae_supported({name: value for name, value in VAE_CONFIG.items() if name not in left_out}, 4)
    check_vae_supported({**VAE_CONFIG, "shift_factor": None, "sample_size": [128, 128], "force_upcast": None}, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", None),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 5),
        ("max_position_embeddings", "77"),
        ("hidden_act", None),
        ("hidden_size", None),
        ("layer_norm_eps", None),
    ],
)
def test_unsupported_text_encoders_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"unsupported text encoder: {field} = {value!r}; "):
        check_text_encoders_supported([{**TEXT_ENCODER_CONFIG, field: value}], UNET_CONFIG)


@pytest.mark.parametrize("value", [["T5EncoderModel"], "T5EncoderModel", {"name": "T5EncoderModel"}, 5])
def test_architectures_in_any_form(value: Any) -> None:
    with pytest.raises(ModelError, match=r"unsupported text encoder: .*only CLIPTextModel"):
        check_text_encoders_supported([{**TEXT_ENCODER_CONFIG, "architectures": value}], UNET_CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train_timesteps", None),
        ("num_train_timesteps", "1000"),
        ("beta_start", None),
        ("beta_end", -1),
        ("beta_schedule", None),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", "linear"),
        ("steps_offset", None),
        ("prediction_type", None),
    ],
)
def test_unsupported_schedulers_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match="unsupported scheduler: ") as caught:
        check_scheduler_supported({"_class_name": "PNDMScheduler", field: value})
    assert f"{field} = {value!r}" in str(caught.value) and caught.value.remedy


def test_schedulers_may_leave_fields_out() -> None:
    check_scheduler_supported({})
    check_scheduler_supported({"trained_betas": None, "use_karras_sigmas": None})
    check_scheduler_supported({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2})


def test_text_encoders_must_fit_the_unet(folder: Path) -> None:
    with pytest.raises(ModelError, match="T5EncoderModel; only CLIPTextModel"):
        check_text_encoders_supported([{"architectures": ["T5EncoderModel"]}], UNET_CONFIG)
    edit_json(folder / "text_encoder" / "config.json", hidden_size=64)
    with pytest.raises(ModelError, match="hidden_size = 64, but the UNet's cross_attention_dim is 32"):
        load_checkpoint(folder)


def test_another_vae_is_refused(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", _class_name="AsymmetricAutoencoderKL")
    with pytest.raises(ModelError, match="AsymmetricAutoencoderKL; only AutoencoderKL"):
        load_checkpoint(folder)
