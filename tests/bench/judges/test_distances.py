"""The structure distance of a DINO ViT with random weights, and LPIPS with a stand-in for its package."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.dino import SIDE, write_dino
from helpers.judges import write_clip
from PIL import Image

from ebca.bench.judges import lpips
from ebca.bench.judges.dino import Dino, structure_distance
from ebca.errors import BackendError, ModelError

FAKE_LPIPS = '''
import torch

class LPIPS(torch.nn.Module):
    """The squared difference of the colours' sums, blurred over 3 x 3 pixels as receptive fields do."""

    def __init__(self, net="alex", spatial=False, verbose=True):
        super().__init__()
        assert spatial and not verbose
        if net == "squeeze":
            raise OSError("<urlopen error no network>")

    def forward(self, a, b):
        assert abs(a).max() <= 1 and abs(b).max() <= 1
        return torch.nn.functional.avg_pool2d((a - b).sum(1, keepdim=True) ** 2, 3, 1, 1)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("judges") / "dino")


@pytest.fixture
def fake_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lpips.py").write_text(FAKE_LPIPS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lpips", raising=False)


def noise(count: int, side: int = SIDE) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def test_keys_are_those_of_the_last_layer(folder: Path) -> None:
    import torch
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    image = noise(1)[0]
    pixels = torch.tensor((np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
    with torch.no_grad():
        # What enters the last layer: the last entry but one, for the last one is what leaves it.
        entering = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][0].double().numpy()
    weights = {name: np.asarray(value, np.float64) for name, value in model.state_dict().items()}
    (norm,) = (name for name in weights if "1.layernorm_before.weight" in name)
    (key,) = (name for name in weights if ".1." in name and name.endswith(("key.weight", "k_proj.weight")))
    centred = entering - entering.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    normed = normed * weights[norm] + weights[norm.replace("weight", "bias")]
    wanted = normed @ weights[key].T + weights[key.replace("weight", "bias")]
    found = Dino.load(str(folder)).keys(image)
    assert found.shape == (1 + 16, 16) and found.dtype == np.float32
    # Float32 products over 16 channels.
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_distance_is_the_mean_square_of_cosines() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5, 3))
    total = 0.0
    for i in range(5):
        for j in range(5):
            cosines = [k[i] @ k[j] / np.sqrt((k[i] @ k[i]) * (k[j] @ k[j])) for k in (a, b)]
            total += (cosines[0] - cosines[1]) ** 2 / 25
    assert structure_distance(a, b) == pytest.approx(total, rel=1e-12)
    # Lengths of keys do not matter.
    assert structure_distance(a, 3 * a) == pytest.approx(0, abs=1e-30)
    assert np.isfinite(structure_distance(a, np.zeros_like(a)))


def test_distances_of_pairs(folder: Path) -> None:
    dino, images = Dino.load(str(folder)), noise(3, 40)
    found = dino.distances(images, [images[0], images[2], images[1]])
    assert found[0] == 0 and found[1] == found[2] > 0 and found.dtype == np.float64


def test_wrong_dinos_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot load the DINO ViT 'nobody/nothing'"):
        Dino.load("nobody/nothing")
    with pytest.raises(ModelError, match="of the type 'clip'"):
        Dino.load(str(write_clip(tmp_path / "clip", ["a"])))


@pytest.mark.usefixtures("fake_lpips")
def test_lpips_of_the_background() -> None:
    judge = lpips.Lpips.load("alex")
    before, after = noise(2, 16)
    inside = np.zeros((16, 16), bool)
    inside[4:9, 2:12] = True
    # Changes in the object only: its borders would reach the background, were it not made grey.
    changed = np.array(before)
    changed[inside] = np.asarray(after)[inside]
    pairs = ([before, before, before], [after, after, Image.fromarray(changed)], [None, inside, inside])
    whole, background, nothing = judge.distances(*pairs)
    a, b = (np.asarray(image, np.float64) / 127.5 - 1 for image in (before, after))

    def blurred(squares: np.ndarray) -> np.ndarray:
        padded = np.pad(squares, 1)
        return sum(padded[y : y + 16, x : x + 16] for y in range(3) for x in range(3)) / 9

    squares = (a - b).sum(-1) ** 2
    # Float32 sums.
    assert whole == pytest.approx(blurred(squares).mean(), rel=1e-5)
    squares[inside] = 0
    assert background == pytest.approx(blurred(squares)[~inside].mean(), rel=1e-5)
    assert nothing == 0 and lpips.available()


@pytest.mark.usefixtures("fake_lpips")
def test_a_net_that_cannot_be_downloaded_is_one_line() -> None:
    with pytest.raises(ModelError, match="cannot load the weights of LPIPS 'squeeze': <urlopen error no network>"):
        lpips.Lpips.load("squeeze")
    with pytest.raises(ModelError, match="no net 'resnet'"):
        lpips.Lpips.load("resnet")


def test_without_the_package_lpips_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "find_spec", lambda _: None)
    assert not lpips.available()
    with pytest.raises(BackendError, match=r'pip install "ebca\[lpips\]"'):
        lpips.Lpips.load()
