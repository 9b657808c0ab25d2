"""Folders of Stable Diffusion XL in diffusers format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import WEIGHTS, Hub, edit_json, same_weights

from ebca.errors import ModelError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.supported import check_unet_supported
from ebca.export.checkpoint.supported_parts import check_text_encoders_supported
from ebca.export.checkpoint.tiny_xl import TINY_XL, UNET_CONFIG, save_tiny_xl

BOTH = [dict(TINY_XL.text_encoder), dict(TINY_XL.text_encoder_2 or {})]


@pytest.fixture(scope="session")
def saved_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("saved") / "tiny-xl")


@pytest.fixture
def folder(saved_xl: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(saved_xl, tmp_path / "model"))


def test_a_folder_is_the_model_that_was_saved(saved_xl: Path) -> None:
    expected, found = TINY_XL.build(), load_checkpoint(saved_xl)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert same_weights(getattr(found, part), getattr(expected, part))
    assert found.tokenizer_info == expected.tokenizer_info
    assert found.tokenizer_info["pad_token_2"] == "!" and found.tokenizer_info["pad_token_id_2"] == 0
    assert json.loads(found.tokenizer_json or "") == json.loads(expected.tokenizer_json or "")
    assert found.force_zeros_for_empty_prompt and found.notices == ()
    assert found.scheduler_config is not None and found.scheduler_config["_class_name"] == "EulerDiscreteScheduler"


def test_a_folder_without_an_index_is_the_same_model(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    found = load_checkpoint(folder)
    assert found.text_encoder_2 is not None and found.force_zeros_for_empty_prompt


@pytest.mark.parametrize("pipeline", ["Pipeline", "Img2ImgPipeline"])
@pytest.mark.parametrize(("said", "expected"), [({"force_zeros_for_empty_prompt": False}, False), ({}, True)])
def test_what_an_empty_negative_prompt_is(folder: Path, pipeline: str, said: dict[str, bool], expected: bool) -> None:
    """What the index does not say is true, as in diffusers' pipelines."""
    index = json.loads((folder / "model_index.json").read_text())
    del index["force_zeros_for_empty_prompt"]
    (folder / "model_index.json").write_text(
        json.dumps({**index, **said, "_class_name": f"StableDiffusionXL{pipeline}"})
    )
    assert load_checkpoint(folder).force_zeros_for_empty_prompt is expected


def test_a_flag_that_is_none_is_refused(folder: Path) -> None:
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt="yes")
    with pytest.raises(ModelError, match="force_zeros_for_empty_prompt = 'yes'; give true or false"):
        load_checkpoint(folder)


def test_an_inpainting_folder(tmp_path: Path) -> None:
    assert load_checkpoint(save_tiny_xl(tmp_path, in_channels=9)).unet.config.in_channels == 9


def test_a_unet_alone(saved_xl: Path) -> None:
    assert load_checkpoint(saved_xl / "unet").text_encoder is None


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_an_incomplete_model_names_what_is_missing(folder: Path, part: str) -> None:
    edit_json(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(ModelError, match=f"is Stable Diffusion XL and has no {part}; take a complete one"):
        load_checkpoint(folder)
    shutil.rmtree(folder / part)
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match=f"is Stable Diffusion XL and has no {part}; take a complete one"):
        load_checkpoint(folder)


def test_the_refiner_is_refused_by_name(folder: Path) -> None:
    nothing = [None, None]
    edit_json(folder / "model_index.json", requires_aesthetics_score=True, text_encoder=nothing, tokenizer=nothing)
    with pytest.raises(ModelError, match="is the refiner of Stable Diffusion XL; export the base model"):
        load_checkpoint(folder)
    # Its UNet alone: five sizes, and a pooled embedding as wide as the context.
    refiner = {"cross_attention_dim": 40, "projection_class_embeddings_input_dim": 5 * 8 + 40}
    with pytest.raises(ModelError, match="this is the refiner of Stable Diffusion XL"):
        check_unet_supported({**UNET_CONFIG, **refiner})


def test_a_second_text_encoder_of_another_unet_is_refused(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", addition_embed_type=None)
    with pytest.raises(ModelError, match="has text_encoder_2, and its UNet is none of Stable Diffusion XL"):
        load_checkpoint(folder)


def test_tokenizers_with_different_vocabularies_are_refused(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer_2" / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
    (folder / "tokenizer_2" / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(ModelError, match="tokenizer_2 has another vocabulary than the first one"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim = None"),
        ({"projection_class_embeddings_input_dim": "2816"}, "projection_class_embeddings_input_dim = '2816'"),
        ({"projection_class_embeddings_input_dim": 48}, "give more than 6 times addition_time_embed_dim"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type = 'text_image'"),
        ({"in_channels": 8}, "InstructPix2Pix of Stable Diffusion XL is not supported"),
    ],
)
def test_unsupported_unets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        check_unet_supported({**UNET_CONFIG, **changes})
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_the_configuration_of_the_published_model_is_supported() -> None:
    """It has null where others have false."""
    check_unet_supported({**UNET_CONFIG, "upcast_attention": None, "mid_block_only_cross_attention": None})


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"hidden_size": 64}, {}, r"hidden_size = 64 \+ 48, but the UNet's cross_attention_dim is 80"),
        ({}, {"projection_dim": 48}, "projection_dim = 48; the UNet takes 40 values"),
        ({"num_hidden_layers": 1}, {}, "num_hidden_layers = 1; the UNet reads the layer before the last"),
        ({}, {"max_position_embeddings": 64}, "max_position_embeddings = 64; that of the first text encoder is 77"),
        ({}, {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
    ],
)
def test_text_encoders_that_do_not_fit_are_refused(first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    check_text_encoders_supported(BOTH, UNET_CONFIG)
    with pytest.raises(ModelError, match=message):
        check_text_encoders_supported([BOTH[0] | first, BOTH[1] | second], UNET_CONFIG)


def test_the_hub_gives_the_files_of_both_text_encoders(folder: Path, set_hub: Callable[[Hub], Hub]) -> None:
    stand_in = set_hub(Hub(folder))
    found = load_checkpoint("owner/name")
    assert found.text_encoder_2 is not None
    small, everything = stand_in.downloads
    assert {"tokenizer_2/vocab.json", "tokenizer_2/merges.txt", "text_encoder_2/config.json"} <= {*small}
    weights = {name for name in everything if name.endswith(".safetensors")}
    encoders = {f"text_encoder{suffix}/model.safetensors" for suffix in ("", "_2")}
    assert weights == {f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", *encoders}
