"""Names of modules in CompVis' layout against the conversion of diffusers, for all of Stable Diffusion 1.x, 2.x and
XL."""

from typing import Any

import pytest

from ebca.engines.adapters.compvis import module_name
from ebca.engines.adapters.modules import Modules, Weight
from ebca.engines.contract.weights import StoredWeight

SD: dict[str, Any] = {
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [32, 32, 64, 64],
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TINY: dict[str, Any] = {
    **SD,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
}


XL: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "block_out_channels": [32, 32, 64],
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 8],
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 72,
}


@pytest.mark.parametrize("config", [SD, TINY, {**SD, "use_linear_projection": True}, XL])
def test_compvis_names(config: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    layers = config.get("layers_per_block", 2)
    attentive = {i for i, kind in enumerate(config["up_block_types"]) if "Attn" in kind}
    ldm, origin = {}, {}
    for name, value in unet.named_parameters():
        module, _, kind = name.rpartition(".")
        theirs = module_name(module, layers, attentive)
        assert theirs is not None, module
        key = f"model.diffusion_model.{theirs}.{kind}"
        assert key not in ldm
        # diffusers may hand on the tensor itself, and identity tells which.
        ldm[key] = value
        origin[id(value)] = name
    converted = convert_ldm_unet_checkpoint(ldm, config={**unet.config, "layers_per_block": layers})
    assert {name: origin[id(value)] for name, value in converted.items()} == {name: name for name in converted}
    assert len(converted) == len(ldm)


def test_no_two_modules_have_one_name() -> None:
    from ebca.export.checkpoint.tiny import build_tiny

    tiny = build_tiny()
    assert tiny.text_encoder is not None
    weights = {
        "unet": {n: StoredWeight((1, 1), ()) for n, p in tiny.unet.named_parameters() if p.ndim > 1},
        "text_encoder": {f"text_model.{n}": StoredWeight((1, 1), ()) for n, p in tiny.text_encoder.named_parameters()},
    }
    modules = Modules(weights)
    for part, named in weights.items():
        for name in named:
            module = name.removesuffix(".weight")
            assert modules.find(f"{part}.{module}") == Weight(part, f"{module}.weight")
            prefix = "lora_unet_" if part == "unet" else "lora_te_"
            assert modules.find(prefix + module.replace(".", "_")) == Weight(part, f"{module}.weight")
    assert modules.find("lora_unet_nothing") is None and modules.find("") is None
    assert modules.find("lora_te2_text_model_encoder_layers_0_mlp_fc1") is None
