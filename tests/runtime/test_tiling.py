"""The VAE in tiles, against `enable_tiling` of diffusers."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import sample_image  # noqa: E402

import ebca  # noqa: E402
from ebca.errors import OutOfMemoryError  # noqa: E402
from ebca.export.checkpoint.tiny_xl import TINY_XL  # noqa: E402
from ebca.runtime import memory  # noqa: E402
from ebca.runtime.images.outputs import to_unit_range  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402
from ebca.runtime.tiling import in_tiles, is_tiled, tile_side  # noqa: E402

# float32 on two libraries; a tile that begins or is blended one row further gives 1e-2 or more.
LIMIT = 1e-4
# A tile of tiny-xl has 16 latents.
SIZES = [(17, 16), (16, 40), (28, 28), (37, 53)]


@pytest.fixture(scope="module")
def vae() -> Any:
    made = TINY_XL.build().vae
    made.enable_tiling()
    return made


@pytest.mark.parametrize("size", SIZES)
def test_decoding_equals_diffusers(xl_engine: ebca.Engine, vae: Any, size: tuple[int, int]) -> None:
    latents = randn((1, 4, *size), 5)
    scale = TINY_XL.vae["scaling_factor"]
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(latents / np.float32(scale))).sample.numpy()
    made = xl_engine.decode(latents, tiled=True)
    assert np.abs(made - expected).max() <= LIMIT
    # Without tiles it is another image, by more than rounding.
    assert np.abs(made - xl_engine.decode(latents)).max() > 100 * LIMIT


@pytest.mark.parametrize("size", SIZES)
def test_encoding_equals_diffusers(xl_engine: ebca.Engine, vae: Any, size: tuple[int, int]) -> None:
    pixels = np.asarray(sample_image(size=(8 * size[0], 8 * size[1])), np.float32)[None] / 255
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2) * 2 - 1)).latent_dist
    mean, std = xl_engine.encode_image(pixels, scaled=False, tiled=True)
    assert np.abs(mean - expected.mean.numpy()).max() <= LIMIT
    # diffusers blends logarithms of variances: the same where no tile is blended, and elsewhere never larger.
    difference = std - expected.std.numpy()
    assert np.abs(difference[:, :, :12, :12]).max() <= LIMIT and difference.min() >= -LIMIT
    assert np.abs(mean - xl_engine.encode_image(pixels, scaled=False)[0]).max() > 10 * LIMIT


def test_an_image_of_one_tile_keeps_its_bits(xl_engine: ebca.Engine) -> None:
    latents = randn((2, 4, 16, 12), 5)
    assert np.array_equal(xl_engine.decode(latents, tiled=True), xl_engine.decode(latents))


def test_a_request_asks_for_tiles(xl_engine: ebca.Engine) -> None:
    asked: dict[str, Any] = {"steps": 1, "seed": 1, "height": 136, "width": 200}
    image = sample_image(size=(136, 200))
    plain, tiled = (xl_engine.generate("a lion", **asked, output="np", vae_tiling=on) for on in (False, True))
    assert np.array_equal(plain.latents, tiled.latents)
    decoded = to_unit_range(xl_engine.decode(tiled.latents, tiled=True))
    assert np.array_equal(tiled.images, decoded) and not np.array_equal(plain.images, decoded)
    assert (plain.parameters["vae_tiling"], tiled.parameters["vae_tiling"]) == (False, True)
    asked |= {"image": image, "strength": 1, "output": "latents"}
    of_image = [xl_engine.generate("a lion", **asked, vae_tiling=on) for on in (False, True)]
    assert not np.array_equal(of_image[0].latents, of_image[1].latents)
    with xl_engine.session(136, 200) as session:
        inverted = [session.invert(image, "a lion", steps=2, vae_tiling=on).latents for on in (False, True)]
    assert not np.array_equal(inverted[0], inverted[1])
    with pytest.raises(ebca.ParameterError, match="vae_tiling is 'no'"):
        xl_engine.generate("a lion", vae_tiling="no")


def test_memory_that_is_short_for_decoding_names_the_remedy(
    xl_engine: ebca.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    asked: dict[str, Any] = {"steps": 1, "seed": 1, "height": 512, "width": 512}
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_compare", lambda need, *_: needed.append(need))
        xl_engine.generate("a lion", **asked, vae_tiling=True)
        least = max(needed)
        xl_engine.generate("a lion", **asked)
    # Decoding needs the most, and less of it in tiles.
    assert max(needed) > 1.2 * least
    monkeypatch.setattr(memory, "available_bytes", lambda: least)
    with pytest.raises(OutOfMemoryError, match=r"; set vae_tiling=True \(ebca-run: --vae-tiling\), make a smaller"):
        xl_engine.generate("a lion", **asked)
    xl_engine.generate("a lion", **asked, vae_tiling=True)
    monkeypatch.setattr(memory, "available_bytes", lambda: least - 1)
    with pytest.raises(OutOfMemoryError, match="; make a smaller image, or fewer at once"):
        xl_engine.generate("a lion", **asked, vae_tiling=True)


def test_tiles_of_a_map_that_depends_on_no_neighbour_are_seamless() -> None:
    array = np.random.default_rng(0).standard_normal((1, 2, 23, 41), np.float32)
    doubled = in_tiles(array, lambda tile: tile.repeat(2, 2).repeat(2, 3), 8, 16)
    assert np.allclose(doubled, array.repeat(2, 2).repeat(2, 3), atol=1e-6)


def test_the_side_of_a_tile_is_whole_quarters() -> None:
    assert [tile_side(size) for size in (1, 16, 66, 128)] == [4, 16, 64, 128]
    assert is_tiled(17, 1, 16) and is_tiled(1, 17, 16) and not is_tiled(16, 16, 16)
