"""Folders in diffusers format: what is read, and one clear line for everything that is wrong with one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from helpers.checkpoints import WEIGHTS, edit_json, same_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModelWithProjection

from ebca.errors import ModelError
from ebca.export.checkpoint.folder import choose_files
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.weight_files import weight_files


def test_a_unet_folder_has_only_a_unet(folder: Path, tmp_path: Path, tiny: Checkpoint) -> None:
    """Both as the folder of the UNet itself and as a folder with nothing but unet/ in it."""
    shutil.copytree(folder / "unet", tmp_path / "bare" / "unet")
    for place in (folder / "unet", tmp_path / "bare"):
        loaded = load_checkpoint(place)
        assert same_weights(loaded.unet, tiny.unet)
        assert loaded.text_encoder is loaded.vae is loaded.tokenizer_json is loaded.scheduler_config is None


def test_half_precision_weights_are_read_as_float32(folder: Path) -> None:
    """Some hub repositories hold only the fp16 variant."""
    path = folder / "unet" / WEIGHTS
    half = {name: value.half() for name, value in load_file(path).items()}
    path.unlink()
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    unet = load_checkpoint(folder).unet
    assert unet.dtype == torch.float32
    assert torch.equal(unet.conv_in.weight, half["conv_in.weight"].float())


def test_weights_in_shards(folder: Path, tiny: Checkpoint) -> None:
    shutil.rmtree(folder / "unet")
    tiny.unet.save_pretrained(folder / "unet", safe_serialization=True, max_shard_size="1MB")
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert same_weights(load_checkpoint(folder).unet, tiny.unet)
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"names {shards[0].name}, which is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("shard", "index"),
    [
        ("diffusion_pytorch_model.fp16-{}.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"),
        ("diffusion_pytorch_model-{}.fp16.safetensors", "diffusion_pytorch_model.safetensors.fp16.index.json"),
        ("diffusion_pytorch_model-{}.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"),
    ],
)
def test_half_shards_in_every_spelling(folder: Path, tiny: Checkpoint, shard: str, index: str) -> None:
    """diffusers has written variants in two ways, and repositories mix them."""
    tensors = {name: value.half() for name, value in load_file(folder / "unet" / WEIGHTS).items()}
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(tensors)
    places: dict[str, str] = {}
    for number, part in enumerate((names[:100], names[100:]), 1):
        file = shard.format(f"0000{number}-of-00002")
        save_file({name: tensors[name] for name in part}, folder / "unet" / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "unet" / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    # What another export left beside them is not read.
    (folder / "unet" / shard.format("00001-of-00003")).write_bytes(b"old")
    unet = load_checkpoint(folder).unet
    assert all(
        torch.equal(value.half().float(), unet.state_dict()[name]) for name, value in tiny.unet.state_dict().items()
    )
    chosen = choose_files([f"unet/{path.name}" for path in (folder / "unet").iterdir()])
    assert {f"unet/{index}", *(f"unet/{file}" for file in places.values())} <= {*chosen}
    # Cut short.
    path = folder / "unet" / shard.format("00002-of-00002")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"broken safetensors file .*{re.escape(path.name)}.*download it again"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "index.json holds a list, not a JSON object"),
        ({"metadata": {}}, "index.json is no index: it needs weight_map and metadata"),
        ({"metadata": {}, "weight_map": []}, "index.json is no index"),
        ({"metadata": {}, "weight_map": {}}, "index.json is no index"),
        ({"weight_map": {"a": "b.safetensors"}}, "index.json is no index"),
        ({"metadata": {}, "weight_map": {"a": 1}}, "index.json places a in 1, no file beside it"),
        (
            {"metadata": {}, "weight_map": {"a": "../x.safetensors"}},
            r"places a in '\.\./x\.safetensors', no file beside it",
        ),
        ({"metadata": {}, "weight_map": {"a": "b.safetensors"}}, r"names b\.safetensors, which is missing"),
    ],
)
def test_a_damaged_index_is_named(folder: Path, content: Any, message: str) -> None:
    """diffusers reads the index although the weights are in one file too."""
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(folder)
    assert caught.value.remedy == "download it again"


def test_weights_under_another_name_are_pointed_at(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(ModelError, match=r"has no .*; diffusion_.*\.non_ema\.safetensors is there: rename it"):
        load_checkpoint(folder)


def test_tensors_without_a_place_are_told(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    save_file({**load_file(path), "add_embedding.weight": torch.zeros(1)}, path, metadata={"format": "pt"})
    (notice,) = load_checkpoint(folder).notices
    assert "the unet in" in notice and "has 1 tensors" in notice and "first add_embedding.weight" in notice


def test_quantised_weights_are_refused(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds conv_in\.weight as I8; quantised weights are not supported"):
        load_checkpoint(folder)


def test_every_file_is_looked_at_before_any_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lambda *args, **options: pytest.fail("loaded"))
    (folder / "vae" / WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelError, match=r"broken safetensors file .*vae"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("text_encoder/config.json", "eos_token_id", None, "unsupported text encoder: eos_token_id = None; "),
        ("text_encoder/config.json", "hidden_act", "nope", "unsupported text encoder: hidden_act = 'nope'; "),
        ("text_encoder/config.json", "attention_dropout", "a", "cannot load the text_encoder .*'attention_dropout': "),
        ("vae/config.json", "scaling_factor", None, "unsupported VAE: scaling_factor = None; "),
        ("unet/config.json", "layers_per_block", None, "unsupported UNet: layers_per_block = None; "),
        ("scheduler/scheduler_config.json", "num_train_timesteps", None, "scheduler: num_train_timesteps = None; "),
        ("tokenizer/tokenizer_config.json", "model_max_length", "77", "model_max_length = '77'; "),
        ("tokenizer/tokenizer_config.json", "pad_token", None, "has no pad_token: pad_token = None; "),
    ],
)
def test_a_wrong_field_is_named_with_its_value(folder: Path, file: str, field: str, value: Any, message: str) -> None:
    if field == "pad_token":
        edit_json(folder / "tokenizer" / "special_tokens_map.json", pad_token=None)
    edit_json(folder / file, **{field: value})
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_an_engine_directory_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="is an engine directory already; name the model that it was made from"):
        load_checkpoint(tmp_path)


def test_another_tokenizer_can_stand_in(folder: Path, tiny: Checkpoint) -> None:
    shutil.copytree(folder / "tokenizer", folder.parent / "other")
    edit_json(folder.parent / "other" / "tokenizer_config.json", model_max_length=20)
    assert load_checkpoint(folder, tokenizer=folder.parent / "other").tokenizer_info["model_max_length"] == 20
    edit_json(folder.parent / "other" / "tokenizer_config.json", model_max_length=99)
    assert load_checkpoint(folder, tokenizer=folder.parent / "other").tokenizer_info["model_max_length"] == 77


def test_a_tokenizer_with_too_many_tokens_is_refused(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    edit_json(folder / "tokenizer" / "vocab.json", extra=len(vocabulary))
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the text encoder of model only \d+"):
        load_checkpoint(folder)


def test_a_folder_in_no_known_layout(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither model_index"):
        load_checkpoint(tmp_path)
    (tmp_path / "dream.safetensors").touch()
    with pytest.raises(ModelError, match=r"to load dream\.safetensors, pass the path of that file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_an_incomplete_pipeline_names_what_is_missing(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=rf"is incomplete: model_index\.json names {part}, but {part}/"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "unet": None,
                "transformer": ["diffusers", "SD3Transformer2DModel"],
                "_class_name": "SD3Pipeline",
            },
            "SD3Pipeline is built on SD3Transformer2DModel",
        ),
        ({"unet": [None, None]}, "is built on no UNet"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "the unet of StableDiffusionPipeline is UNet2DModel"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "text_encoder_2/config.json is missing"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel; only CLIPTextModel"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny; only AutoencoderKL"),
    ],
)
def test_other_pipelines_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


def test_a_broken_json_file_is_named(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        load_checkpoint(folder)
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json holds a list"):
        load_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_broken_weight_file_is_named(folder: Path, size: int) -> None:
    path = folder / "unet" / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ModelError, match=rf"broken safetensors file .*{re.escape(WEIGHTS)}.*download it again"):
        load_checkpoint(folder)


def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights .* are never loaded"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("part", "file"), [("unet", WEIGHTS), ("text_encoder", "model.safetensors")])
def test_missing_tensors_are_not_filled_with_noise(folder: Path, part: str, file: str) -> None:
    """diffusers and transformers only warn."""
    tensors = load_file(folder / part / file)
    name = sorted(tensors)[3]
    del tensors[name]
    save_file(tensors, folder / part / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"the {part} in .* lacks 1 tensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("part", "file"), [("unet", WEIGHTS), ("text_encoder", "model.safetensors")])
def test_tensors_of_another_shape_are_refused(folder: Path, part: str, file: str) -> None:
    tensors = load_file(folder / part / file)
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / part / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"the {part} in .*(another shape|expected shape)"):
        load_checkpoint(folder)


def test_files_are_chosen_per_network() -> None:
    names = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "v1-5.ckpt",
        "v1-5.safetensors",
        "README.md",
    ]
    names += ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"]
    names += [f"vae/{WEIGHTS}", "vae/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt"]
    assert set(choose_files(names)) == {
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        f"vae/{WEIGHTS}",
        "tokenizer/merges.txt",
    }
    with pytest.raises(ModelError, match="no safetensors weights for the unet"):
        choose_files(["unet/config.json", "unet/diffusion_pytorch_model.bin"])


def test_half_shards_need_their_index() -> None:
    shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    assert weight_files([shard], "diffusion_pytorch_model") is None
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    found = weight_files([shard, index], "diffusion_pytorch_model")
    assert found is not None and (found.variant, found.files, found.index) == ("fp16", (shard,), (index,))


def _variant(folder: Path, part: str, variant: str) -> nn.Module:
    """Write other weights of one network beside its own, as a variant; returns the network."""
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    network = kind.from_pretrained(folder / part)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    network.save_pretrained(folder / part, variant=variant)
    return network


def test_a_variant_is_taken_where_it_exists(folder: Path, tiny: Checkpoint) -> None:
    expected = _variant(folder, "unet", "non_ema")
    plain, found = load_checkpoint(folder), load_checkpoint(folder, variant="non_ema")
    assert same_weights(plain.unet, tiny.unet) and plain.notices == ()
    assert same_weights(found.unet, expected) and same_weights(found.vae, tiny.vae)
    (notice,) = found.notices
    assert "no variant 'non_ema' of some networks" in notice
    assert "vae (full precision), text_encoder (full precision)" in notice


def test_a_variant_that_no_network_has_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"has no weights of variant 'non_ema'; leave the variant out"):
        load_checkpoint(folder, variant="non_ema")
    with pytest.raises(ModelError, match=r"variant is '\.\./x'"):
        load_checkpoint(folder, variant="../x")
    with pytest.raises(ModelError, match=r"ema = 'True' means nothing for .* a folder"):
        load_checkpoint(folder, ema=True)


def test_a_variant_is_chosen_among_hub_files() -> None:
    names = ["unet/config.json", "vae/config.json", "text_encoder/config.json"]
    names += [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    names += ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"]
    chosen = choose_files(names, "non_ema")
    assert [name for name in chosen if name.endswith(".safetensors")] == [
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ]


@pytest.mark.parametrize("level", ["", "text_model."])
def test_text_encoders_of_both_generations_of_transformers(folder: Path, tiny: Checkpoint, level: str) -> None:
    """Up to transformers 4 their tensors have the level "text_model", in later versions they need not."""
    assert tiny.text_encoder is not None
    tensors = {
        level + name.removeprefix("text_model."): value.clone()
        for name, value in tiny.text_encoder.state_dict().items()
        if "position_ids" not in name
    }
    save_file(tensors, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    found = load_checkpoint(folder)
    assert same_weights(found.text_encoder, tiny.text_encoder) and found.notices == ()


def test_a_text_encoder_with_a_projection_is_taken_without_it(folder: Path, tiny: Checkpoint) -> None:
    assert tiny.text_encoder is not None
    model = CLIPTextModelWithProjection(tiny.text_encoder.config)
    names = {name.removeprefix("text_model."): value for name, value in tiny.text_encoder.state_dict().items()}
    inner = model.text_model
    inner.load_state_dict({name: names[name.removeprefix("text_model.")] for name in inner.state_dict()})
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))
    found = load_checkpoint(folder)
    assert same_weights(found.text_encoder, tiny.text_encoder) and found.notices == ()


def test_what_the_unet_predicts_can_be_given(folder: Path) -> None:
    config = load_checkpoint(folder, prediction_type="v_prediction").scheduler_config
    assert config is not None and config["prediction_type"] == "v_prediction"
    with pytest.raises(ModelError, match="prediction_type is 'flow'; give epsilon or v_prediction"):
        load_checkpoint(folder, prediction_type="flow")
    with pytest.raises(ModelError, match="has no scheduler that prediction_type"):
        load_checkpoint(folder / "unet", prediction_type="epsilon")
