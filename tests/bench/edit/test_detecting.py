"""Masks of objects that a segmenter finds, and the benchmark with them."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.clipseg import write_clipseg
from helpers.dino import write_dino
from helpers.judges import write_clip
from PIL import Image, ImageDraw

import ebca
from ebca.bench import cli
from ebca.bench.alignment.journal import Journal
from ebca.bench.edit.cases import Case, load_image, load_object, make_case
from ebca.bench.edit.detecting import Detection, with_masks
from ebca.bench.judges.segmenter import Segmenter
from ebca.errors import ParameterError

SOURCE, TARGET = "a red circle", "a blue square"
SIZE = (64, 64)
FAKE_LPIPS = """
import torch

class LPIPS(torch.nn.Module):
    def __init__(self, net, spatial, verbose):
        super().__init__()

    def forward(self, a, b):
        return abs(a - b).mean(1, keepdim=True)
"""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Two images with red circles, wider than high, so that they are cut."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    for i in range(2):
        image = Image.new("RGB", (96, 64), (190, 190, 190))
        ImageDraw.Draw(image).ellipse((30 + 4 * i, 20, 55 + 4 * i, 45), (220, 40, 40))
        image.save(folder / f"{i}.png")
    return folder


class Reds:
    """A segmenter of red pixels that counts the images it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, images: Sequence[Image.Image], text: str) -> list[np.ndarray]:
        self.seen += [text] * len(images)
        return [np.where(self.truth(image), 0.8, 0.1).astype(np.float32) for image in images]

    @staticmethod
    def truth(image: Image.Image) -> np.ndarray:
        return np.asarray(image)[..., 1] < 120


def case_of(folder: Path, **more: object) -> Case:
    return make_case({"name": "a", "images": folder, "source": SOURCE, "target": TARGET, **more})


def test_masks_are_what_is_found(drawn: Path, tmp_path: Path) -> None:
    reds, journal = Reds(), Journal(tmp_path / "journal.jsonl")
    (case,) = with_masks([case_of(drawn)], Detection("reds", reds), tmp_path / "out", journal, SIZE, 8)
    assert case.segmenter == "reds" and reds.seen == ["red circle"] * 2 and case.masks is not None
    for image, mask in zip(case.images, case.masks, strict=True):
        wanted = Reds.truth(load_image(image, SIZE))
        assert 100 < wanted.sum() < 1000
        assert (load_object(mask, SIZE) == wanted).all()


def test_masks_are_kept_until_something_differs(drawn: Path, tmp_path: Path) -> None:
    reds, out = Reds(), tmp_path / "out"

    def find(threshold: float = 0.5, name: str = "reds", **more: object) -> int:
        before = len(reds.seen)
        found = Detection(name, reds, threshold)
        with_masks([case_of(drawn, **more)], found, out, Journal(tmp_path / "journal.jsonl"), SIZE, 1)
        return len(reds.seen) - before

    assert (find(), find()) == (2, 0)
    (out / "masks" / "a" / "0.png").unlink()
    (out / "masks" / "a" / "1.png").write_bytes(b"damaged")
    assert (find(), find()) == (2, 0)
    assert (find(0.6), find(name="others"), find(object="the circle")) == (2, 2, 2)
    image = Image.open(drawn / "1.png").convert("RGB")
    image.putpixel((50, 5), (0, 0, 0))
    image.save(drawn / "1.png")
    assert find(object="the circle") == 1


def test_masks_that_are_given_stay(drawn: Path, tmp_path: Path) -> None:
    given, reds = case_of(drawn, masks=drawn), Reds()
    assert with_masks([given], Detection("reds", reds), tmp_path, Journal(None), SIZE, 8) == [given]
    assert reds.seen == []


@pytest.mark.parametrize("threshold", [0.05, 0.9])
def test_images_without_an_object_or_a_background_are_named(drawn: Path, tmp_path: Path, threshold: float) -> None:
    with pytest.raises(
        ParameterError, match=r"case 'a': 'red circle' is found nowhere or everywhere in '0.png', '1.png'"
    ):
        with_masks([case_of(drawn)], Detection("reds", Reds(), threshold), tmp_path, Journal(None), SIZE, 8)


def test_the_benchmark_finds_objects(
    drawn: Path,
    tmp_path: Path,
    engine: ebca.Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "lpips.py").write_text(FAKE_LPIPS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    words = f"{SOURCE} {TARGET}".split()
    model = str(write_clipseg(tmp_path / "clipseg", words))
    with engine.session() as session:
        size = (session.width, session.height)
    images = [load_image(drawn / f"{i}.png", size) for i in range(2)]
    probable = Segmenter.load(model).probabilities(images, "circle")
    threshold = float(np.median(probable))
    command = [
        *("edit", "--engine", "shapes", "--backend", "onnxruntime", "--device", "cpu", "--steps", "3"),
        *("--images", str(drawn), "--source", SOURCE, "--target", TARGET, "--methods", "swap", "--object", "circle"),
        *("--clip", str(write_clip(tmp_path / "clip", words)), "--dino", str(write_dino(tmp_path / "dino"))),
        *("--output", str(tmp_path / "out"), "--json", str(tmp_path / "e.json"), "--segmenter", model),
    ]
    assert cli.main([*command, "--threshold", repr(threshold)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "LPIPS, background" in out and f"what {model} finds for 'circle'" in out.replace("- ", "-")
    found = json.loads((tmp_path / "e.json").read_text())["cases"]["drawn"]
    assert (found["lpips_region"], found["masks"], found["object"]) == ("background", model, "circle")
    for i, image in enumerate(images):
        mask = load_object(tmp_path / "out" / "masks" / "drawn" / f"{i}.png", size)
        # Batches of other sizes round differently near the threshold.
        assert (mask == (probable[i] >= threshold)).mean() > 0.99 and mask.any() and not mask.all()
        after = Image.open(tmp_path / "out" / "images" / "drawn" / "swap" / f"{i}.png")
        difference = abs(np.asarray(image, np.float64) - np.asarray(after)).mean(-1) / 127.5
        assert found["each"][i]["swap"]["lpips"] == pytest.approx(difference[~mask].mean(), rel=1e-5)
    for more, message in (
        (["--threshold", "1"], "--threshold is 1; give a number between 0 and 1"),
        (["--threshold", "0.999999"], "is found nowhere or everywhere"),
        (["--segmenter", str(tmp_path / "clip")], "of the type 'clip'"),
    ):
        assert cli.main([*command, *more]) == 1
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1 and re.search(message, shown), shown
    assert cli.main(command[:-2]) == 1 and "--object says what --segmenter looks for" in capsys.readouterr().err
