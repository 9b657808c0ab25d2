"""CLIP and the captioner, with random weights."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.judges import SIDE, one_thread, write_captioner, write_clip
from PIL import Image

from ebca.bench.judges.captioner import Captioner
from ebca.bench.judges.clip import Clip, unit
from ebca.errors import BackendError, ModelError

WORDS = ("a", "red", "blue", "circle", "square", "and")


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("judges") / "clip", WORDS)


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.load(str(folder))


def noise(count: int, side: int = SIDE) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def test_directions_have_unit_length_and_do_not_depend_on_the_others(clip: Clip) -> None:
    images, texts = noise(3), ["a red circle", "a blue square and a red circle", "blue"]
    for found, alone in (
        (clip.images(images), [clip.images([image]) for image in images]),
        (clip.texts(texts), [clip.texts([text]) for text in texts]),
    ):
        assert found.shape == (3, 24) and found.dtype == np.float32
        # Float32 sums of other shapes, and padding to the longest text.
        np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert abs(found[0] - found[1]).max() > 1e-3
    assert clip.images([]).shape == clip.texts([]).shape == (0, 24)


def test_features_are_those_of_transformers(folder: Path, clip: Clip) -> None:
    import torch
    from transformers import CLIPModel, CLIPTokenizerFast

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizerFast.from_pretrained(folder)
    image = noise(1)[0]
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
    tokens = tokenizer(["a red circle"], return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    np.testing.assert_allclose(clip.images([image]), out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(clip.texts(["a red circle"]), out.text_embeds, atol=1e-5)


def test_long_texts_are_cut_off(clip: Clip) -> None:
    np.testing.assert_allclose(clip.texts(["red " * 30]), clip.texts(["red " * 40]), atol=1e-6)


def test_unit_scales_rows() -> None:
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-7)


def test_captions_are_the_same_again(tmp_path: Path) -> None:
    captioner = Captioner.load(str(write_captioner(tmp_path / "blip", WORDS)))
    images = noise(3, 40)
    found = captioner.captions(images)
    assert len(found) == 3 and all(isinstance(text, str) and "[" not in text for text in found)
    assert {word for text in found for word in text.split()} <= set(WORDS)
    assert len(set(found)) > 1
    assert captioner.captions(images) == found and captioner.captions([]) == []


@pytest.mark.parametrize("load", [Clip.load, Captioner.load])
def test_a_missing_model_is_one_line(load: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, text in (
        ("nobody/has-this-model", r"cannot load the .* 'nobody/has-this-model': .*; check the name, the network"),
        (str(tmp_path / "nothing"), "there is no folder"),
        (str(tmp_path), "cannot load the .*; download it again"),
        ("", "is empty"),
    ):
        with pytest.raises(ModelError, match=text) as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    """transformers would load it with random weights."""
    with pytest.raises(ModelError, match=r"is no captioner but of the type 'clip'; name one of the type 'blip'"):
        Captioner.load(str(folder))


def test_a_device_that_is_not_there_is_one_line(folder: Path) -> None:
    for device in ("cuda:99", "tpu-like"):
        with pytest.raises(BackendError, match=f"cannot use the device '{device}' for the judges: .*; give cpu"):
            Clip.load(str(folder), device)


def test_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "clip"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights, such as text_projection\.weight; download it again"):
        Clip.load(str(copy))
