"""From arrays to images and PNG files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.runtime.images.outputs import read_parameters, save_png, to_pil, to_unit_range

PARAMETERS = {"prompt": 'ein Löwe 🦁 "with" a\ncrown', "seed": [1, 2**63], "gamma_attn": 0.1 + 0.2, "none": None}


def sample_image() -> Image.Image:
    return Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def test_decoded_values_are_clipped_to_the_unit_range() -> None:
    decoded = np.zeros((1, 3, 2, 4), np.float32)
    decoded[0, 0, 0] = [-3, -1, 1, 3]
    unit = to_unit_range(decoded)
    assert unit.shape == (1, 2, 4, 3) and unit.dtype == np.float32
    assert unit[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    assert (unit[..., 1:] == 0.5).all()


def test_images_are_rounded_to_bytes() -> None:
    values = np.array([0, 1, 0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255], np.float32).reshape(1, 1, 2, 3)
    (image,) = to_pil(values)
    assert image.mode == "RGB" and image.size == (2, 1)
    assert np.asarray(image).reshape(-1).tolist() == [0, 255, 128, 0, 1, 255]


def test_parameters_can_be_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "an image.png"
    save_png(sample_image(), path, PARAMETERS)
    assert read_parameters(path) == PARAMETERS
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(sample_image()))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    save_png(sample_image(), path, {"seed": 1})
    assert read_parameters(path) == {"seed": 1}


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ebca.ParameterError, match=r"cannot write '.*x\.png': No space left on device"):
        save_png(sample_image(), path, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_a_parameter_error(tmp_path: Path) -> None:
    with pytest.raises(ebca.ParameterError, match="No such file"):
        save_png(sample_image(), tmp_path / "nowhere" / "x.png", {})


@pytest.mark.parametrize("content", ["nothing", "text", "png", "other_json"])
def test_other_files_hold_no_parameters(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.png"
    if content == "text":
        path.write_text("not an image")
    elif content == "png":
        sample_image().save(path)
    elif content == "other_json":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("ebca", json.dumps(3))
        sample_image().save(path, pnginfo=info)
    with pytest.raises(ebca.ParameterError, match="is not a PNG file written by ebca"):
        read_parameters(path)
