"""Every published layout, with few channels: what is read is what was written, as diffusers reads it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebca.errors import ModelError
from ebca.export.checkpoint import single_file
from ebca.export.checkpoint.architectures import KNOWN
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.prediction import predicted
from ebca.export.checkpoint.published import PUBLISHED, Layout, reduced, shapes, write
from ebca.export.checkpoint.single_file import FileChoices
from ebca.export.checkpoint.tensor_file import open_tensors
from ebca.export.checkpoint.vae import load_vae

SMALL = [reduced(one) for one in KNOWN]


def small(name: str, **changes: Any) -> Layout:
    layout = PUBLISHED[name]
    return replace(layout.of(reduced(layout.architecture)), **changes)


@cache
def _content(name: str, parts: tuple[str, ...]) -> bytes:
    with TemporaryDirectory() as folder:
        return write(small(name, parts=parts), Path(folder) / "model.safetensors").read_bytes()


def written(name: str, path: Path, parts: tuple[str, ...] = ("unet", "text_encoder", "vae")) -> Path:
    """A file in a layout, made once."""
    path.write_bytes(_content(name, parts))
    return path


def loaded(path: Path, **choices: Any) -> Checkpoint:
    return single_file.load_single_file(path, known=SMALL, choices=FileChoices(**choices))


def inside(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value.float() for name, value in tensors.items() if name.startswith(prefix)}


def assert_equal(found: Any, expected: dict[str, Tensor]) -> None:
    state = {name: value for name, value in found.state_dict().items() if not name.endswith("position_ids")}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name].reshape(state[name].shape)) for name in state)


@pytest.mark.parametrize(
    "name", ["sd-1.5-fp16", "sd-1.5-inpainting", "instruct-pix2pix", "sd-2.1-768", "sdxl-base", "sdxl-inpainting"]
)
def test_unet_and_vae_are_those_that_diffusers_reads(name: str, tmp_path: Path) -> None:
    layout = small(name, parts=("unet", "vae"))
    path = written(name, tmp_path / "model.safetensors", ("unet", "vae"))
    found, tensors = loaded(path), load_file(path)
    config = {**layout.architecture.unet, "in_channels": layout.in_channels}
    assert found.unet.config.in_channels == layout.in_channels
    assert_equal(found.unet, convert_ldm_unet_checkpoint(inside(tensors, "model.diffusion_model."), config))
    config = dict(AutoencoderKL.from_config(dict(layout.architecture.vae)).config)
    assert_equal(found.vae, convert_ldm_vae_checkpoint(inside(tensors, "first_stage_model."), config))


def test_open_clip_is_the_one_that_diffusers_reads(tmp_path: Path) -> None:
    path = written("sd-2.1-768", tmp_path / "model.safetensors")
    model = loaded(path).text_encoder
    assert model is not None and model.config.num_hidden_layers == 3
    wrapped = "text_model." if hasattr(model, "text_model") else ""
    expected = convert_open_clip_checkpoint(model, load_file(path), prefix="cond_stage_model.model.")
    # diffusers keeps the last layer, which the network has no place for, and the projection.
    expected = {
        wrapped + name.removeprefix("text_model."): value
        for name, value in expected.items()
        if ".layers.3." not in name and not name.startswith("text_projection")
    }
    assert_equal(model, expected)


def test_clip_with_and_without_its_upper_level_is_the_same(tmp_path: Path) -> None:
    path = written("sd-1.5-fp16", tmp_path / "model.safetensors")
    flat = {name.replace(".text_model.", "."): value for name, value in load_file(path).items()}
    save_file(flat, tmp_path / "flat.safetensors")
    one, other = loaded(path).text_encoder, loaded(tmp_path / "flat.safetensors").text_encoder
    assert one is not None and other is not None and not one.training
    assert_equal(other, {name: value for name, value in one.state_dict().items() if "position_ids" not in name})


@pytest.mark.parametrize("name", ["sd-1.5-linear-vae", "sd-1.5-bf16", "sd-1.5-fp8", "sd-1.5-fp8-e5m2"])
def test_other_spellings_and_dtypes_are_read_in_float32(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path / "model.safetensors", ("unet", "vae"))
    found, tensors = loaded(path), load_file(path)
    assert found.unet.dtype == torch.float32 and found.vae is not None
    stored = tensors["model.diffusion_model.middle_block.1.proj_in.weight"]
    assert stored.dtype == PUBLISHED[name].dtype
    assert torch.equal(found.unet.mid_block.attentions[0].proj_in.weight, stored.float())
    key = {"linear": "to_out.0"}.get(PUBLISHED[name].vae, "proj_out")
    stored = tensors[f"first_stage_model.decoder.mid.attn_1.{key}.weight"].float()
    weight = found.vae.decoder.mid_block.attentions[0].to_out[0].weight
    assert torch.equal(weight, stored.reshape(weight.shape))


def test_a_scaled_float8_weight_is_multiplied(tmp_path: Path) -> None:
    path = written("sd-1.5-fp8", tmp_path / "model.safetensors", ("unet",))
    plain, tensors = loaded(path).unet, load_file(path)
    tensors["model.diffusion_model.time_embed.0.scale_weight"] = torch.tensor(0.5)
    save_file(tensors, path)
    assert torch.equal(loaded(path).unet.time_embedding.linear_1.weight, 0.5 * plain.time_embedding.linear_1.weight)


def test_plain_and_averaged_weights(tmp_path: Path) -> None:
    path = written("sd-1.5-with-ema", tmp_path / "model.safetensors", ("unet",))
    tensors = load_file(path)
    plain, averaged = loaded(path), loaded(path, ema=True)
    assert torch.equal(plain.unet.conv_in.weight, tensors["model.diffusion_model.input_blocks.0.0.weight"])
    assert torch.equal(averaged.unet.conv_in.weight, tensors["model_ema.diffusion_modelinput_blocks00weight"])
    assert "the plain ones are taken, not the averaged; give --ema" in plain.notices[0]
    assert "the averaged ones are taken, not the plain; leave --ema out" in averaged.notices[0]
    # A file with nothing but averaged weights.
    save_file({n: v for n, v in tensors.items() if not n.startswith("model.")}, path)
    only = loaded(path)
    assert torch.equal(only.unet.conv_out.bias, averaged.unet.conv_out.bias)
    assert only.notices == ("model.safetensors has averaged weights (EMA) only, which are taken",)
    save_file({n: v for n, v in tensors.items() if not n.startswith("model_ema.")}, path)
    assert loaded(path).notices == ()
    with pytest.raises(ModelError, match=r"has no averaged weights .*; leave --ema out"):
        loaded(path, ema=True)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("sd-1.5-fp16", None, "epsilon"),
        ("sd-1.5-fp16", "v_prediction", "v_prediction"),
        ("sd-2.1-768", None, "v_prediction"),
        ("sd-2.1-768", "epsilon", "epsilon"),
        ("sd-2.1-768-described", None, "v_prediction"),
        ("sd-2.1-base", None, "epsilon"),
        ("sd-2.0-inpainting", None, "epsilon"),
    ],
)
def test_what_the_unet_predicts(name: str, given: str | None, expected: str, tmp_path: Path) -> None:
    path, layout = written(name, tmp_path / "model.safetensors", ("unet",)), small(name)
    with open_tensors(path) as file:
        found = predicted(file, layout.architecture, layout.in_channels, given)
    assert found.kind == expected
    # Only a guess is worth a line.
    assert bool(found.notices) == (name == "sd-2.1-768" and given is None)


def test_a_described_file_says_name_size_and_prediction(tmp_path: Path) -> None:
    found = loaded(written("sd-2.1-768-described", tmp_path / "model.safetensors", ("unet",)))
    assert found.scheduler_config is not None and found.scheduler_config["prediction_type"] == "v_prediction"
    assert (found.name, found.unet.config.sample_size, found.notices) == ("two-one", 24, ())


def test_the_number_of_training_steps_tells_the_base_model(tmp_path: Path) -> None:
    path = written("sd-2.1-768", tmp_path / "model.safetensors", ("unet",))
    for steps, expected in ((875000, "epsilon"), (110000, "v_prediction")):
        save_file({**load_file(path), "global_step": torch.tensor(steps)}, path)
        with open_tensors(path) as file:
            assert predicted(file, SMALL[1], 4, None).kind == expected


def test_metadata_with_an_unknown_prediction_is_refused(tmp_path: Path) -> None:
    metadata = {"modelspec.prediction_type": "flow"}
    path = write(small("sd-1.5-fp16", parts=("unet",), metadata=metadata), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"says modelspec.prediction_type = 'flow'; give --prediction-type"):
        loaded(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.diffusion_model.more.weight": torch.zeros(1)}, r"has 1 tensors too many, first .*more\.weight"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(5)}, r"out\.2\.bias has shape \[5\], not \[4\]"),
        ({"cond_stage_model.other.weight": torch.zeros(1)}, r"neither CLIP nor open CLIP .* folder in diffusers"),
    ],
)
def test_files_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    path = written("sd-1.5-fp16", tmp_path / "model.safetensors", ("unet",))
    save_file({**load_file(path), **change}, path)
    with pytest.raises(ModelError, match=message):
        loaded(path)


@pytest.mark.parametrize("name", ["vae-original", "vae-linear", "vae-old"])
def test_a_vae_file_replaces_the_vae(name: str, tmp_path: Path) -> None:
    model = loaded(written("sd-1.5-fp16", tmp_path / "model.safetensors", ("unet",)))
    assert model.vae is None
    # Without a VAE of its own, a model's VAE is that of Stable Diffusion, which this is not.
    path = written(name, tmp_path / "other.safetensors", ("vae",))
    with pytest.raises(ModelError, match=r"the VAE in other\.safetensors does not fit"):
        load_vae(model, path)
    with torch.device("meta"):
        model.vae = AutoencoderKL.from_config(dict(SMALL[0].vae))
    changed, tensors = load_vae(model, path), load_file(path)
    assert changed.vae is not None and changed.source["vae"] == "other.safetensors"
    query = {"vae-original": "mid.attn_1.q", "vae-linear": "mid_block.attentions.0.to_q"}
    stored = tensors[f"decoder.{query.get(name, 'mid_block.attentions.0.query')}.weight"]
    weight = changed.vae.decoder.mid_block.attentions[0].to_q.weight
    assert torch.equal(weight, stored.reshape(weight.shape))
    assert changed.notices == ()


def test_a_vae_comes_out_of_a_whole_checkpoint_or_a_folder(saved: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    from helpers.checkpoints import same_weights

    for place in (saved, saved / "vae"):
        assert same_weights(load_vae(replace(tiny, vae=None), place).vae, tiny.vae)
    path = written("sd-1.5-fp16", tmp_path / "model.safetensors", ("unet", "vae"))
    model = loaded(path)
    assert same_weights(load_vae(model, path).vae, model.vae)
    with pytest.raises(ModelError, match=r"holds no VAE"):
        load_vae(model, written("sd-1.5-fp16", tmp_path / "text.safetensors", ("text_encoder",)))
    with pytest.raises(ModelError, match=r"there is no VAE .*nowhere"):
        load_vae(model, tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"is no VAE: it has neither config.json nor vae/config.json"):
        load_vae(model, tmp_path)


def test_the_keys_of_the_real_sizes() -> None:
    """Numbers of tensors as in the published files: 686 of the UNet, 248 of the VAE, 197 of CLIP."""
    names = shapes(PUBLISHED["sd-1.5-fp16"])
    counts = [
        sum(name.startswith(prefix) for name in names)
        for prefix in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    ]
    assert counts == [686, 248, 197]
    two = shapes(PUBLISHED["sd-2.1-768"])
    assert two["cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert two["model.diffusion_model.input_blocks.1.1.proj_in.weight"] == (320, 320)


def test_the_keys_of_the_real_size_of_xl() -> None:
    """Numbers of tensors as in the published file: 1680 of the UNet, 248 of the VAE, 197 of CLIP, 390 of open CLIP."""
    names = shapes(PUBLISHED["sdxl-base"])
    prefixes = (
        "model.diffusion_model.",
        "first_stage_model.",
        "conditioner.embedders.0.transformer.text_model.",
        "conditioner.embedders.1.model.",
    )
    assert [sum(name.startswith(prefix) for name in names) for prefix in prefixes] == [1680, 248, 197, 390]
    assert names["model.diffusion_model.label_emb.0.0.weight"] == (1280, 2816)
    assert names["model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight"] == (640, 2048)
    assert names["model.diffusion_model.output_blocks.5.2.conv.weight"] == (640, 640, 3, 3)
    assert names["conditioner.embedders.1.model.text_projection"] == (1280, 1280)


def test_both_text_encoders_of_xl_are_those_that_diffusers_reads(tmp_path: Path) -> None:
    path = written("sdxl-base", tmp_path / "model.safetensors")
    model, tensors = loaded(path), load_file(path)
    first, second = model.text_encoder, model.text_encoder_2
    assert first is not None and second is not None
    wrapped = "text_model." if hasattr(first, "text_model") else ""
    prefix = "conditioner.embedders.0.transformer.text_model."
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    assert_equal(first, {wrapped + n: tensors[prefix + n].float() for n in names if not n.endswith("position_ids")})
    expected = convert_open_clip_checkpoint(second, tensors, prefix="conditioner.embedders.1.model.")
    assert_equal(second, {name: value.float() for name, value in expected.items()})
    assert torch.equal(
        second.text_projection.weight, tensors["conditioner.embedders.1.model.text_projection"].float().T
    )
    assert model.tokenizer_info["pad_token_2"] == "!" and model.tokenizer_info["pad_token_id_2"] == 0
    assert model.tokenizer_info["pad_token"] == "<|endoftext|>" and model.force_zeros_for_empty_prompt
    assert model.scheduler_config is not None and model.scheduler_config["_class_name"] == "EulerDiscreteScheduler"


def test_an_xl_file_may_have_no_text_encoder_but_not_one_of_two(tmp_path: Path) -> None:
    alone = loaded(written("sdxl-base", tmp_path / "unet.safetensors", ("unet",)))
    assert (alone.text_encoder, alone.text_encoder_2, alone.vae, alone.tokenizer_json) == (None, None, None, None)
    tensors = load_file(written("sdxl-base", tmp_path / "model.safetensors"))
    for number in (0, 1):
        prefix = f"conditioner.embedders.{number}."
        path = tmp_path / "one.safetensors"
        save_file({name: value for name, value in tensors.items() if not name.startswith(prefix)}, path)
        with pytest.raises(ModelError, match=rf"has one of two text encoders: none is at {prefix}"):
            loaded(path)


def test_the_refiner_of_xl_is_refused_by_name(tmp_path: Path) -> None:
    path, prefix = tmp_path / "refiner.safetensors", "model.diffusion_model."
    parts = {
        "input_blocks.0.0.weight": (8, 4, 3, 3),
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 1280),
        "label_emb.0.0.weight": (8, 2560),
    }
    save_file({prefix + name: torch.zeros(shape) for name, shape in parts.items()}, path)
    with pytest.raises(
        ModelError, match=r"refiner\.safetensors is the refiner of Stable Diffusion XL; export the base"
    ):
        loaded(path)
