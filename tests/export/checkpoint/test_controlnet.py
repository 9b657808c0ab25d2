"""ControlNets of every form: folders, single files in both layouts, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING  # noqa: E402
from helpers.controlnets import controlnet  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from ebca.errors import ModelError, ParameterError  # noqa: E402
from ebca.export.api import export_checkpoint  # noqa: E402
from ebca.export.checkpoint.controlnet import load_controlnets  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402


def ldm_name(name: str) -> str:
    """The original layout's name of a tensor of `tiny`'s ControlNet, whose blocks have one layer."""
    known = {
        **DIFFUSERS_TO_LDM_MAPPING["controlnet"]["layers"],
        **{f"controlnet_cond_embedding.conv_in.{kind}": f"input_hint_block.0.{kind}" for kind in ("weight", "bias")},
    }
    if name in known:
        return str(known[name])
    parts = name.split(".")
    inside = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    if parts[0] == "controlnet_mid_block":
        return f"middle_block_out.0.{parts[1]}"
    if name.startswith("controlnet_cond_embedding.blocks."):
        return f"input_hint_block.{2 * int(parts[2]) + 2}.{parts[3]}"
    if parts[0] == "controlnet_down_blocks":
        return f"zero_convs.{parts[1]}.0.{parts[2]}"
    if parts[0] == "mid_block":
        place, rest = f"middle_block.{2 * int(parts[2]) + (parts[1] == 'attentions')}", parts[3:]
        kind = parts[1]
    else:
        block = int(parts[1])
        if parts[2] == "downsamplers":
            return f"input_blocks.{2 * block + 2}.0.op.{parts[-1]}"
        place, rest = f"input_blocks.{2 * block + 1}.{int(parts[2] == 'attentions')}", parts[4:]
        kind = parts[2]
    return ".".join([place, inside[rest[0]], *rest[1:]] if kind == "resnets" else [place, *rest])


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# The converter knows hint encoders of four sizes, as they are published.
REAL = {"conditioning_embedding_out_channels": [16, 32, 96, 256]}


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_a_single_file_in_the_original_layout(tmp_path: Path, prefix: str) -> None:
    net = controlnet(3, **REAL)
    tensors = {prefix + ldm_name(name): value.contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, tmp_path / "control_canny.safetensors")
    loaded = load_controlnets(build_tiny(), [str(tmp_path / "control_canny.safetensors")])
    assert list(loaded.controlnets) == ["control_canny"] and same(loaded.controlnets["control_canny"], net)


def test_a_folder_and_a_single_file_of_diffusers(tmp_path: Path) -> None:
    net = controlnet(3, **REAL)
    net.save_pretrained(tmp_path / "pose")
    file = tmp_path / "pose" / "diffusion_pytorch_model.safetensors"
    loaded = load_controlnets(build_tiny(), [str(tmp_path / "pose"), f"{file}=again"])
    assert list(loaded.controlnets) == ["pose", "again"]
    assert all(same(one, net) for one in loaded.controlnets.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 48}, "for another base: its cross_attention_dim is 48, and that of the UNet 32"),
        ({"block_out_channels": [32, 32]}, "its block_out_channels is .32, 32., and that of the UNet"),
        ({"layers_per_block": 2}, "its layers_per_block is 2, and that of the UNet 1"),
        ({"in_channels": 9}, "its in_channels is 9, and that of the UNet 4"),
        ({"conditioning_channels": 4}, "conditioning_channels = 4; in its configuration, give 3"),
        ({"global_pool_conditions": True}, "not supported: residuals averaged over the image, which need guess mode"),
        ({"_class_name": "ControlNetUnionModel"}, "only ControlNetModel is supported"),
        ({"down_block_types": ["DownBlock2D", "Other"]}, "down_block_types"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = {**controlnet(1).config, "_class_name": "ControlNetModel", **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as caught:
        load_controlnets(build_tiny(), [f"{tmp_path}=net"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["nowhere"], "there is no ControlNet 'nowhere'"),
        (["=canny"], "names no place"),
        (["missing.safetensors"], "there is no file missing.safetensors"),
        (["pickle.ckpt"], "is a pickle"),
        (["somewhere=a b"], "a ControlNet cannot be called 'a b'"),
    ],
)
def test_a_wrong_place_is_one_line(asked: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_controlnets(build_tiny(), asked)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    controlnet(1).save_pretrained(tmp_path / "net")
    with pytest.raises(ModelError, match="two ControlNets are called 'net'; give one of them another name"):
        load_controlnets(build_tiny(), [str(tmp_path / "net")] * 2)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=r"lora\.safetensors is no ControlNet: it has no tensor"):
        load_controlnets(build_tiny(), [str(tmp_path / "lora.safetensors")])


def test_nothing_is_written_for_options_or_images_that_do_not_fit(tmp_path: Path) -> None:
    checkpoint = build_tiny()
    checkpoint.controlnets = {"net": controlnet(1)}
    with pytest.raises(ParameterError, match="runs its UNet in segments only"):
        export_checkpoint(checkpoint, tmp_path / "engine", with_full_unet=True)
    checkpoint.controlnets = {"net": controlnet(1, conditioning_embedding_out_channels=[8, 8])}
    with pytest.raises(Exception, match="reads 2 pixels per latent and side, and the VAE makes 8"):
        export_checkpoint(checkpoint, tmp_path / "engine")
    assert not list(tmp_path.iterdir())
