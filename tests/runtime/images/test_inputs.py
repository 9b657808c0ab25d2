"""Images and masks in every accepted form: reading, resizing, thresholds, and errors."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ebca
from ebca.runtime.images.inputs import (
    fitted_size,
    image_size,
    latent_mask,
    load_images,
    load_masks,
    warn_if_resized,
)

SIZE = (16, 24)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


# --- images


def test_every_form_of_an_image_gives_the_same_pixels(pixels: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    expected = pixels[None].astype(np.float32) / 255
    forms = (image, pixels, pixels / 255, pixels.astype(np.float32) / 255, tmp_path / "image.png", [image], (pixels,))
    for form in (*forms, str(tmp_path / "image.png"), pixels[None], image.convert("RGBA")):
        loaded = load_images(form, *SIZE)
        assert loaded.dtype == np.float32
        assert np.array_equal(loaded, expected)


def test_pixels_of_the_right_size_are_unchanged(pixels: np.ndarray) -> None:
    """Compositing needs this: pixels outside the mask must not change by a bit."""
    loaded = load_images(pixels, *SIZE)
    assert np.array_equal(np.round(loaded[0] * 255).astype(np.uint8), pixels)
    exact = np.random.default_rng(1).random((*SIZE, 3), np.float32)
    assert np.array_equal(load_images(exact, *SIZE)[0], exact)


def test_other_sizes_are_resized_as_pillow_does(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    for size in ((8, 8), (32, 40)):
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
        assert np.array_equal(load_images(image, *size)[0], expected)
        assert np.array_equal(load_images(pixels / 255, *size)[0], expected)


def test_several_images_may_differ_in_form_and_size(pixels: np.ndarray) -> None:
    loaded = load_images([pixels, Image.new("RGB", (5, 7), "red"), np.ones((3, 3))], *SIZE)
    assert loaded.shape == (3, *SIZE, 3)
    assert np.array_equal(loaded[1], np.broadcast_to(np.array([1, 0, 0]), (*SIZE, 3)))
    assert np.array_equal(loaded[2], np.ones((*SIZE, 3), np.float32))
    assert np.array_equal(load_images(np.stack([pixels, pixels]), *SIZE), np.repeat(loaded[:1], 2, 0))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "CMYK", "YCbCr", "I;16"])
def test_other_colour_modes_are_accepted(mode: str) -> None:
    white = np.full(SIZE, 255, np.uint8)
    image = Image.fromarray(white.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(white).convert(mode)
    assert image.mode == mode
    assert np.array_equal(load_images(image, *SIZE), np.ones((1, *SIZE, 3), np.float32))


def test_sixteen_bit_pixels_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    image = Image.fromarray(grey)
    image.save(tmp_path / "grey.png")
    for form in (image, tmp_path / "grey.png"):
        # Half a step of 8 bits.
        assert np.abs(load_images(form, *SIZE)[0, ..., 1] - grey / 65535).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(load_masks(form, *SIZE)[0, 0] > 0, np.rint(grey / 257) >= 127.5)


def test_the_exif_orientation_is_applied(pixels: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert image_size(tmp_path / "turned.png") == SIZE[::-1]
    expected = np.rot90(pixels, -1).astype(np.float32) / 255
    # The file, and the same as an object.
    for form in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert image_size(form) == SIZE[::-1]
        assert np.array_equal(load_images(form, *SIZE[::-1])[0], expected)


def test_transparent_pixels_are_white_and_a_warning_says_so(pixels: np.ndarray, tmp_path: Path) -> None:
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:4], alpha[4:8] = 0, 128
    rgba = np.dstack([pixels, alpha])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    share = alpha[..., None] / 255
    expected = (pixels * share + 255 * (1 - share)) / 255
    for form in (rgba, rgba / 255, Image.fromarray(rgba), tmp_path / "rgba.png"):
        with pytest.warns(UserWarning) as caught:
            loaded = load_images(form, *SIZE)[0]
        (warning,) = caught
        assert str(warning.message) == "the image has transparent pixels; they are composited on white"
        assert warning.filename == __file__
        # Half a step of 8 bits.
        assert np.abs(loaded - expected).max() <= 0.5 / 255 + 1e-6
        assert (loaded[:4] == 1).all() and np.array_equal(loaded[8:], pixels[8:].astype(np.float32) / 255)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_mode_with_alpha_is_composited(mode: str) -> None:
    with pytest.warns(UserWarning, match="transparent"):
        assert (load_images(Image.new(mode, SIZE[::-1]), *SIZE) == 1).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_transparent_colour_is_composited(mode: str, tmp_path: Path) -> None:
    key = (0, 0, 0) if mode == "RGB" else 0
    image = Image.new(mode, SIZE[::-1])
    image.save(tmp_path / "image.png", transparency=key)
    with pytest.warns(UserWarning, match="transparent"):
        assert (load_images(tmp_path / "image.png", *SIZE) == 1).all()


def test_float_pixels_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.linspace(0, 1, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    for form in (Image.fromarray(grey), tmp_path / "grey.tif"):
        # Half a step of 8 bits.
        assert np.abs(load_images(form, *SIZE)[0, ..., 1] - grey).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(load_masks(form, *SIZE)[0, 0] > 0, np.rint(grey * 255) >= 127.5)


@pytest.mark.parametrize("brightest", [255, 65535])
def test_modes_without_a_known_range_are_refused(brightest: int, tmp_path: Path) -> None:
    values = np.full(SIZE, brightest)
    for pixels, named in (
        (values.astype(np.int32), "has the mode I (32-bit integers), which says nothing about the range of its pixels"),
        (values.astype(np.float32), "has the mode F (float) with values outside [0, 1]; scale it to [0, 1]"),
        (np.full(SIZE, np.nan, np.float32), "has the mode F (float) with values outside [0, 1]"),
    ):
        Image.fromarray(pixels).save(tmp_path / "image.tif")
        for form in (Image.fromarray(pixels), tmp_path / "image.tif"):
            for load in (load_images, load_masks):
                with pytest.raises(ebca.ParameterError) as caught:
                    load(form, *SIZE)
                assert named in str(caught.value)


def test_sixteen_bits_in_the_mode_of_thirty_two_are_scaled(tmp_path: Path) -> None:
    """Pillow opens such a PGM file, and in some versions PNG, in mode I."""
    values = np.array([[0, 257 * 100, 65535]], ">u2")
    (tmp_path / "grey.pgm").write_bytes(b"P5 3 1 65535\n" + values.tobytes())
    assert np.array_equal(load_images(tmp_path / "grey.pgm", 1, 3)[0, 0, :, 0], np.float32([0, 100, 255]) / 255)


# --- masks


def test_every_form_of_a_mask_gives_the_same_holes(tmp_path: Path) -> None:
    hole = np.random.default_rng(2).random(SIZE) < 0.4
    image = Image.fromarray((hole * 255).astype(np.uint8))
    image.save(tmp_path / "mask.png")
    grey = (hole * 255).astype(np.uint8)
    color = np.repeat(grey[..., None], 3, -1)
    forms: tuple[Any, ...] = (hole, hole.astype(np.float64), grey, grey[..., None], color, color / 255, image)
    for form in (*forms, tmp_path / "mask.png", str(tmp_path / "mask.png"), [hole], hole[None], image.convert("1")):
        loaded = load_masks(form, *SIZE)
        assert loaded.dtype == np.float32
        assert np.array_equal(loaded[:, 0], hole[None])


@pytest.mark.parametrize(
    ("value", "white"),
    [(127, False), (128, True), (np.float32(0.4999), False), (np.float32(0.5), True), (False, False), (True, True)],
)
def test_pixels_of_one_half_and_brighter_are_the_hole(value: Any, white: bool) -> None:
    mask = np.full(SIZE, value)
    mask = mask.astype(np.uint8) if mask.dtype.kind == "i" else mask
    mask[0, 0] = 255 if mask.dtype == np.uint8 else 1
    loaded = load_masks(mask, *SIZE)
    assert (loaded == 1).sum() == (mask.size if white else 1)
    if mask.dtype == np.uint8:
        assert np.array_equal(loaded, load_masks(Image.fromarray(mask), *SIZE))


@pytest.mark.parametrize("colour", [0, 90, 255])
def test_the_hole_of_a_mask_with_one_colour_is_where_it_is_transparent(colour: int, tmp_path: Path) -> None:
    """As image editors and image APIs make it."""
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[4:9, 6:], alpha[9] = 0, 127
    rgba = np.dstack([np.full((*SIZE, 3), colour, np.uint8), alpha])
    image = Image.fromarray(rgba)
    image.save(tmp_path / "mask.png")
    for form in (rgba, rgba / 255, image, tmp_path / "mask.png", image.convert("LA")):
        assert np.array_equal(load_masks(form, *SIZE)[0, 0] > 0, alpha < 128)
    assert load_masks(image, 8, 12).mean() == pytest.approx((alpha < 128).mean(), abs=0.05)  # a row and a column


def test_colours_of_a_mask_count_before_its_transparency() -> None:
    grey = np.zeros(SIZE, np.uint8)
    grey[:5] = 255
    rgba = np.dstack([grey, grey, grey, np.full(SIZE, 255, np.uint8)])
    assert np.array_equal(load_masks(rgba, *SIZE)[0, 0] > 0, grey > 0)
    rgba[10:, :, 3] = 0
    with pytest.warns(UserWarning, match="the mask has several colours and transparency; its colours are used"):
        assert np.array_equal(load_masks(rgba, *SIZE)[0, 0] > 0, grey > 0)


def test_a_mask_of_zeros_and_ones_is_not_almost_black(tmp_path: Path) -> None:
    hole = np.zeros(SIZE, np.uint8)
    hole[3:8, 5:] = 1
    Image.fromarray(hole).save(tmp_path / "mask.png")
    forms = (hole, hole[..., None], np.dstack([hole] * 3), hole > 0, Image.fromarray(hole), tmp_path / "mask.png")
    for form in forms:
        assert np.array_equal(load_masks(form, *SIZE)[0, 0], hole)
    # An 8-bit mask: 1 is black where anything is brighter.
    hole[0, 0] = 255
    assert load_masks(hole, *SIZE).sum() == 1


def test_a_mask_of_another_size_is_resized_and_stays_binary() -> None:
    mask = Image.new("L", (12, 8))
    mask.paste(255, (6, 0, 12, 8))
    loaded = load_masks(mask, *SIZE)[0, 0]
    assert np.array_equal(np.unique(loaded), [0, 1])
    assert np.array_equal(loaded, np.broadcast_to(np.arange(24) >= 12, SIZE))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_the_latent_mask_takes_the_nearest_pixel_as_torch_does(
    height: int, width: int, downscale: int, seed: int
) -> None:
    torch = pytest.importorskip("torch")
    masks = (np.random.default_rng(seed).random((2, 1, height * downscale, width * downscale)) < 0.5).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(masks), (height, width)).numpy()
    assert np.array_equal(latent_mask(masks, downscale), expected)


# --- sizes


def test_the_size_is_that_of_the_first_image(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for form in (pixels, Image.fromarray(pixels), tmp_path / "image.png", [pixels, pixels[:3]], pixels[None]):
        assert image_size(form) == SIZE


def test_a_mask_of_another_size_than_the_image_warns(pixels: np.ndarray) -> None:
    with pytest.warns(UserWarning) as caught:
        warn_if_resized(pixels, np.ones((8, 9)))
    (warning,) = caught
    assert str(warning.message) == "the mask has 9 x 8 pixels, the image 24 x 16; the mask is stretched to fit"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_resized(pixels, np.ones(SIZE))


@pytest.mark.parametrize(
    ("size", "native", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((100, 100), 128, (128, 128)),
        ((480, 640), 512, (440, 592)),
        ((1, 4000), 512, (8, 32384)),
        ((3000, 2000), 512, (624, 416)),
    ],
)
def test_fitted_sizes_keep_the_aspect_ratio(size: tuple[int, int], native: int, expected: tuple[int, int]) -> None:
    assert fitted_size(size, native, 8) == expected


# --- refusals

SHAPE = "give pixels [height, width, 3]"
KINDS = "give an image, its file, or an array of pixels"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, f"image is of type NoneType; {KINDS}"),
        (5, f"image is of type int; {KINDS}"),
        ([3.5], f"image is of type float; {KINDS}"),
        ([], "image is an empty list; give at least one image"),
        (np.zeros((0, 3)), f"image is an array of shape [0, 3]; {SHAPE}"),
        (np.zeros((8, 0, 3)), f"image is an array of shape [8, 0, 3]; {SHAPE}"),
        (np.zeros((0, 8, 8, 3)), f"image is an array of shape [0, 8, 8, 3]; {SHAPE}"),
        (np.zeros(4), f"image is an array of shape [4]; {SHAPE}"),
        # Channels first, which could also be three grey images.
        (np.zeros((3, *SIZE)), f"image is an array of shape [3, 16, 24]; {SHAPE}"),
        (np.zeros((2, 3, *SIZE)), f"image is an array of shape [3, 16, 24]; {SHAPE}"),
        (np.zeros((*SIZE, 2)), f"image is an array of shape [16, 24, 2]; {SHAPE}"),
        # The shape is checked before the values.
        (np.full((1, 4, *SIZE), -3.0), f"image is an array of shape [4, 16, 24]; {SHAPE}"),
        (np.full((*SIZE, 3), 255.0), "image is a float array with values outside [0, 1]; scale it to [0, 1]"),
        (np.full((*SIZE, 3), -0.1), "image is a float array with values outside [0, 1]"),
        (np.full((*SIZE, 3), np.nan), "image is a float array with values outside [0, 1]"),
        (np.zeros((*SIZE, 3), int), "image is an array of int64; give uint8, or float in [0, 1]"),
        (np.zeros((*SIZE, 3), np.uint16), "image is an array of uint16; give uint8"),
    ],
)
def test_other_values_are_not_images(value: Any, named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        load_images(value, *SIZE)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_the_error_about_a_tensor_does_not_print_its_values() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ebca.ParameterError, match=r"^image is of type Tensor; give an image[a-z ,]*$"):
        load_images(torch.zeros(3, *SIZE), *SIZE)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros(SIZE), "the mask is empty: no pixel is white, so nothing would be regenerated; paint the part"),
        (np.full(SIZE, 127, np.uint8), "the mask is empty"),
        ([np.ones(SIZE), np.zeros(SIZE)], "mask 1 is empty"),
        (np.ones((1, 1, *SIZE)), "mask is an array of shape [1, 16, 24]; give pixels [height, width]"),
        (np.full(SIZE, 2.0), "mask is a float array with values outside [0, 1]"),
        ({}, "mask is an empty list"),
        (object(), f"mask is of type object; {KINDS}"),
    ],
)
def test_other_values_are_not_masks(value: Any, named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        load_masks(value, *SIZE)
    assert named in str(caught.value)


def test_objects_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Pillow reads the pixels of an opened file when they are needed."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "complete.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "complete.png").read_bytes()[:-40])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ebca.ParameterError, match=r"^image cannot be read"):
        load_images(image, *SIZE)
    with pytest.raises(ebca.ParameterError, match=r"^mask has 0 x 5 pixels"):
        load_masks(Image.new("RGB", (0, 5)), *SIZE)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ebca.ParameterError, match=r"^image '.*pipe.png' cannot be read as an image: it is not a file"):
        load_images(tmp_path / "pipe.png", *SIZE)


def test_names_of_files_are_shortened_to_one_line() -> None:
    for load in (load_images, load_masks):
        with pytest.raises(ebca.ParameterError) as caught:
            load("x" * 5000 + "\n\udcff.png", *SIZE)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "complete.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "complete.png").read_bytes()[:-40])
    missing = tmp_path / "missing.png"
    for load, name in ((load_images, "image"), (load_masks, "mask")):
        with pytest.raises(ebca.ParameterError, match=rf"^{name} '.*missing.png' does not exist; check the path$"):
            load(missing, *SIZE)
        for bad in ("text.png", "cut.png", ""):
            with pytest.raises(ebca.ParameterError, match=rf"^{name} '.*{bad}' cannot be read as an image: "):
                load(str(tmp_path / bad), *SIZE)


def test_an_image_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ebca.ParameterError, match="has more than 2000 pixels; make it smaller"):
        load_images(tmp_path / "image.png", *SIZE)
