"""Results: saved with their parameters, and shown shortly."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ebca


@pytest.fixture(scope="module")
def engine() -> Iterator[ebca.Engine]:
    with ebca.load("shapes", backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module")
def two(engine: ebca.Engine) -> ebca.Result:
    with engine.session(batch=2) as session:
        return session.generate(["a red circle", "a blue star"], seed=[1, 2], steps=1, scheduler="ddim")


@pytest.fixture(scope="module")
def one(engine: ebca.Engine) -> ebca.Result:
    with engine.session() as session:
        return session.generate("a red circle", seed=1, steps=1, scheduler="ddim", output="np")


@pytest.fixture(scope="module")
def latents(engine: ebca.Engine) -> ebca.Result:
    with engine.session() as session:
        return session.generate("a red circle", seed=1, steps=1, scheduler="ddim", output="latents")


def pixels(source: Path | io.BytesIO | Image.Image) -> np.ndarray:
    image = source if isinstance(source, Image.Image) else Image.open(source)
    return np.asarray(image).copy()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_several_images_are_numbered_and_hold_their_parameters(two: ebca.Result, tmp_path: Path, suffix: str) -> None:
    files = two.save(tmp_path / "new" / f"x{suffix}")
    assert files == [tmp_path / "new" / f"x-{index}{suffix}" for index in (0, 1)]
    for index, file in enumerate(files):
        assert np.array_equal(pixels(file), pixels(two.images[index]))
        assert ebca.read_parameters(file) == {**two.parameters, "image_index": index}
    assert not np.array_equal(pixels(files[0]), pixels(files[1]))


def test_one_image_of_an_array_keeps_its_name(one: ebca.Result, tmp_path: Path) -> None:
    assert one.save(str(tmp_path / "x.png")) == [tmp_path / "x.png"]
    assert np.array_equal(pixels(tmp_path / "x.png"), np.rint(one.images[0] * 255))
    small, large = (one.save(tmp_path / f"{q}.jpg", quality=q)[0] for q in (20, 90))
    assert small.stat().st_size < large.stat().st_size


def test_latents_are_no_images(latents: ebca.Result, tmp_path: Path) -> None:
    with pytest.raises(ebca.ParameterError, match="has no images to save; generate with output='pil', or save"):
        latents.save(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_if_one_file_cannot_be(two: ebca.Result, tmp_path: Path) -> None:
    (tmp_path / "x-1.png").mkdir()
    for name, named in (("x.png", r"x-1\.png' is a folder"), ("x.bmp", "has the suffix '.bmp'")):
        with pytest.raises(ebca.ParameterError, match=named):
            two.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1.png"]


def test_reprs_are_short(engine: ebca.Engine, two: ebca.Result, one: ebca.Result, latents: ebca.Result) -> None:
    assert repr(two).startswith(
        "<ebca.Result: 2 images of 64x64, task='text-to-image', prompt=['a red circle', 'a blue star'], steps=1, "
        "seed=[1, 2], model='shapes', "
    )
    assert repr(one).startswith("<ebca.Result: 1 image of 64x64, ")
    assert repr(latents).startswith("<ebca.Result: latents float32[1,4,16,16], ")
    assert repr(ebca.Inverted(two.latents, {"a": 1.0, "unet_steps": [0.25, 0.25]})) == (
        "<ebca.Inverted: latents float32[2,4,16,16], 1.50 s>"
    )
    assert repr(engine) == f"<ebca.Engine 'shapes' in '{engine.directory.path}': cpu, onnxruntime, fp32>"
    with engine.session(batch=2) as session:
        assert repr(session) == "<ebca.Session of 'shapes': 2 images of 64x64>"
    assert repr(session) == "<ebca.Session of 'shapes': 2 images of 64x64, closed>"


def test_notebooks_show_the_images(two: ebca.Result, one: ebca.Result, latents: ebca.Result) -> None:
    shown = two._repr_png_()
    assert shown is not None
    sheet = pixels(io.BytesIO(shown))
    assert np.array_equal(sheet[:, :64], pixels(two.images[0]))
    assert np.array_equal(sheet[:, 68:], pixels(two.images[1]))
    single = one._repr_png_()
    assert single is not None
    assert np.array_equal(pixels(io.BytesIO(single)), np.rint(one.images[0] * 255))
    assert latents._repr_png_() is None
