"""Which models can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import edit_json

from ebca.errors import ModelError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.supported import check_text_encoder_supported, check_unet_supported
from ebca.export.checkpoint.tiny import UNET_CONFIG


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
        ("time_cond_proj_dim", 256),
        ("cross_attention_dim", [32, 64]),
        ("down_block_types", ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("in_channels", 8),
    ],
)
def test_unsupported_unets_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"unsupported UNet: {field} = ") as caught:
        check_unet_supported({**UNET_CONFIG, field: value})
    named = value[0] if field == "down_block_types" else value
    assert repr(named) in str(caught.value)


def test_sdxl_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="Stable Diffusion XL, not supported for now"):
        check_unet_supported({**UNET_CONFIG, "addition_embed_type": "text_time"})


def test_a_unet_without_cross_attention_is_refused() -> None:
    plain = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None}
    with pytest.raises(ModelError, match="no cross-attention"):
        check_unet_supported({**UNET_CONFIG, **plain})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True, "attention_head_dim": [5, 10], "upcast_attention": True},
        {"in_channels": 9},
        {"cross_attention_dim": [32, 32]},
        {"only_cross_attention": [False, False]},
        {"class_embed_type": None, "dual_cross_attention": False},
    ],
)
def test_supported_unets_pass(changes: dict[str, Any]) -> None:
    check_unet_supported({**UNET_CONFIG, **changes})


def test_an_empty_configuration_means_the_defaults_of_diffusers() -> None:
    check_unet_supported({})


def test_text_encoders_must_fit_the_unet(folder: Path) -> None:
    with pytest.raises(ModelError, match="T5EncoderModel; only CLIPTextModel"):
        check_text_encoder_supported({"architectures": ["T5EncoderModel"]}, 768)
    edit_json(folder / "text_encoder" / "config.json", hidden_size=64)
    with pytest.raises(ModelError, match="hidden_size = 64, but the UNet's cross_attention_dim is 32"):
        load_checkpoint(folder)


def test_another_vae_is_refused(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", _class_name="AsymmetricAutoencoderKL")
    with pytest.raises(ModelError, match="AsymmetricAutoencoderKL; only AutoencoderKL"):
        load_checkpoint(folder)
