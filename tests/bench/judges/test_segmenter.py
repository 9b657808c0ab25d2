"""CLIPSeg with random weights."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.clipseg import SIDE, write_clipseg
from helpers.judges import write_clip
from PIL import Image

from ebca.bench.judges.segmenter import Segmenter
from ebca.errors import ModelError

WORDS = ("a", "red", "blue", "circle", "square")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clipseg(tmp_path_factory.mktemp("judges") / "clipseg", WORDS)


def noise(count: int, side: int = SIDE) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def test_probabilities_are_those_of_the_logits(folder: Path) -> None:
    import torch
    from transformers import CLIPSegForImageSegmentation, CLIPTokenizerFast

    model, tokenizer = (
        CLIPSegForImageSegmentation.from_pretrained(folder).eval(),
        CLIPTokenizerFast.from_pretrained(folder),
    )
    image = noise(1)[0]
    pixels = torch.tensor((np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokenizer(["red circle"], return_tensors="pt")).logits
    wanted = 1 / (1 + np.exp(-logits.double().numpy().reshape(SIDE, SIDE)))
    segmenter = Segmenter.load(str(folder))
    (found,) = segmenter.probabilities([image], "red circle")
    assert found.dtype == np.float32
    # Float32 sums of other shapes.
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert abs(found - segmenter.probabilities([image], "blue square")[0]).max() > 1e-5


def test_maps_have_the_sizes_of_their_images(folder: Path) -> None:
    segmenter = Segmenter.load(str(folder))
    wide, small = noise(1)[0].resize((80, 48)), noise(1)[0]
    found = segmenter.probabilities([wide, small], "circle")
    assert [one.shape for one in found] == [(48, 80), (SIDE, SIDE)]
    np.testing.assert_allclose(found[1], segmenter.probabilities([small], "circle")[0], atol=1e-5)
    assert segmenter.probabilities([], "circle") == []


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot load the CLIPSeg model 'nobody/nothing'"):
        Segmenter.load("nobody/nothing")
    with pytest.raises(ModelError, match="of the type 'clip'"):
        Segmenter.load(str(write_clip(tmp_path / "clip", ["a"])))
