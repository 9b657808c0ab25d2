"""Image files that carry parameters: all formats, and every way in which a file cannot be written or read."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import ebca
from ebca.result_files import replacing
from ebca.runtime.images.files import check_image_path, numbered, read_parameters, save_image

PARAMETERS = {
    "prompt": 'ein Löwe 🦁 "with" a\ncrown',
    "seed": [1, 2**63],
    "gamma_attn": 0.1 + 0.2,
    "none": None,
    # A file name that is not valid Unicode, as Python reads it.
    "image_files": ["\udce4.png"],
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".WebP")


def sample_image() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).resize((96, 64), Image.Resampling.BICUBIC)


def difference(path: Path) -> float:
    """Root mean square of the differences to the sample, in levels of 8 bits."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return float(np.sqrt(((np.asarray(image, float) - np.asarray(sample_image(), float)) ** 2).mean()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_suffix_chooses_the_format_and_parameters_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"an image{suffix}"
    assert save_image(sample_image(), path, PARAMETERS) == path
    assert read_parameters(path) == PARAMETERS
    with Image.open(path) as image:
        assert image.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix.lower(), "JPEG")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    # JPEG: 2.7 at a quality of 95; 7.5 at 75, and 10.7 with colours at half the resolution.
    assert difference(path) < 4 if "j" in suffix.lower() else difference(path) == 0


def test_lossy_formats_take_a_quality(tmp_path: Path) -> None:
    for suffix in (".jpg", ".webp"):
        files = [save_image(sample_image(), tmp_path / f"{q}{suffix}", PARAMETERS, quality=q) for q in (20, 90)]
        assert files[0].stat().st_size < files[1].stat().st_size
        assert difference(files[0]) > difference(files[1]) > 0
        assert read_parameters(files[0]) == PARAMETERS
        for wrong, named in ((0, "quality is 0; give 1 to 100"), ("high", "quality is 'high'")):
            with pytest.raises(ebca.ParameterError, match=named):
                save_image(sample_image(), tmp_path / f"x{suffix}", {}, quality=wrong)  # type: ignore[arg-type]
    with pytest.raises(ebca.ParameterError, match="PNG files are lossless"):
        save_image(sample_image(), tmp_path / "x.png", {}, quality=90)


def test_a_jpeg_file_without_room_for_the_parameters_is_written_with_a_warning(tmp_path: Path) -> None:
    long = {"gamma_attn": [0.5] * 13000}
    with pytest.warns(UserWarning, match=r"x\.jpg' holds no parameters: these have 65\d\d\d bytes and a JPEG file has"):
        save_image(sample_image(), tmp_path / "x.jpg", long | {"prompt": "x" * 600})
    with pytest.raises(ebca.ParameterError, match="holds no parameters of ebca"):
        read_parameters(tmp_path / "x.jpg")
    for name in ("x.png", "x.webp"):
        save_image(sample_image(), tmp_path / name, long)
        assert read_parameters(tmp_path / name) == long


def test_folders_are_created_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check_image_path("~/new/folder/x.png")
    assert not list(tmp_path.iterdir())
    assert save_image(sample_image(), "~/new/folder/x.png", {"seed": 1}) == tmp_path / "new" / "folder" / "x.png"
    assert read_parameters("~/new/folder/x.png") == {"seed": 1}


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    save_image(sample_image(), path, {"seed": 1})
    assert read_parameters(path) == {"seed": 1}


def test_several_images_are_numbered_before_the_suffix() -> None:
    assert numbered(Path("a/x.y.png"), 1) == [Path("a/x.y.png")]
    assert numbered(Path("a/x.y.png"), 2) == [Path("a/x.y-0.png"), Path("a/x.y-1.png")]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_write_that_ends_early_leaves_the_file_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    expected = ebca.ParameterError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), replacing(path) as file:
        file.write(b"half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"] and path.read_bytes() == b"old"


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: real(Path("/dev/full"), "wb") if "x" in mode else real(self))
    with pytest.raises(ebca.ParameterError) as caught:
        save_image(sample_image(), tmp_path / "x.webp", {})
    assert str(caught.value) == (
        f"the file '{tmp_path / 'x.webp'}' cannot be written: No space left on device; "
        "free some space, or name a file on another disk"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("x.gif", "the image file '{}' has the suffix '.gif'; name a .png, .jpg or .webp file"),
        ("x", "the image file '{}' has no suffix; name a .png, .jpg or .webp file"),
        ("folder.png", "file '{}' is a folder; name a file"),
        ("file/x.png", "file '{}' cannot be written: Not a directory; name a file in a writable folder"),
        ("y" * 255 + ".png", "file '{}' cannot be written: File name too long; shorten its name"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, name: str, named: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for write in (check_image_path, lambda path: save_image(sample_image(), path, {})):
        with pytest.raises(ebca.ParameterError) as caught:
            write(tmp_path / name)
        assert str(caught.value).endswith(named.format(tmp_path / name))
        assert sorted(tmp_path.rglob("*")) == before
    for missing in ("~no such user~/x.png", 3):
        with pytest.raises(ebca.ParameterError, match=r"a user who does not exist|a path is of type int"):
            save_image(sample_image(), missing, {})  # type: ignore[arg-type]


def write_foreign(path: Path, kind: str) -> None:
    """A file that ebca did not write."""
    text: Any = {"other_json": "3", "no_object": "[]", "no_json": "a cat, Steps: 20"}.get(kind, "")
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        save_image(sample_image(), path, PARAMETERS)
        path.write_bytes(path.read_bytes()[:60])
    elif path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("ebca", text)
        sample_image().save(path, pnginfo=info if text else None)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be") if text else b""
        sample_image().save(path, exif=exif)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("missing", "does not exist; check the path"),
        ("folder", "is a folder; name a .png, .jpg or .webp file"),
        ("text", "is not a PNG, JPEG or WebP image; name a file that ebca wrote"),
        ("truncated", "; name a file that ebca wrote"),
        ("plain", "holds no parameters of ebca: another program wrote or changed it; name a file that ebca wrote"),
        ("other_json", "holds no parameters of ebca"),
        ("no_object", "holds no parameters of ebca"),
        ("no_json", "holds no parameters of ebca"),
    ],
)
def test_other_files_hold_no_parameters(tmp_path: Path, suffix: str, kind: str, named: str) -> None:
    path = tmp_path / f"x{suffix}"
    if kind != "missing":
        write_foreign(path, kind)
    with pytest.raises(ebca.ParameterError) as caught:
        read_parameters(path)
    assert named in str(caught.value) and str(path) in str(caught.value)
    assert json.dumps(str(caught.value)).count("\\n") == 0
