"""Single stages of the C++ library, which need no session, against Python's."""

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.memory_of_decoding import check_given_back

import ebca
from ebca.errors import EngineError, NumericalError, ParameterError
from ebca.runtime import native
from ebca.runtime.conditioning.prompts import Conditioning, PromptEncoder
from ebca.runtime.images.inputs import load_images
from ebca.runtime.images.latents import LatentPreparation
from ebca.runtime.images.outputs import to_bytes, to_unit_range
from ebca.runtime.images.preview import LinearPreview
from ebca.runtime.native import structures, view
from ebca.runtime.noise import NormalStream

TEXTS = ["a red circle and a blue square", "a (green:1.3) star, " * 20, ""]


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def latents(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.filterwarnings("ignore:the prompt is longer")
@pytest.mark.parametrize("reading", [{}, {"prompt_weighting": False, "long_prompts": False}], ids=["default", "plain"])
def test_texts_become_python_s_embeddings(
    shapes: native.Engine, python_shapes: ebca.Engine, reading: dict[str, Any]
) -> None:
    made = shapes.encode_prompt(TEXTS, **reading)
    expected = PromptEncoder(python_shapes, len(TEXTS)).encode(Conditioning(TEXTS, **reading), guided=False)
    assert np.array_equal(made, expected.conditional)


def test_embeddings_make_the_image_of_their_texts(shapes: native.Engine) -> None:
    prompt, negative = np.split(shapes.encode_prompt([TEXTS[0], ""]), 2)
    with shapes.session() as session:
        expected = session.generate(TEXTS[0], seed=1, steps=3)
        made = session.generate(prompt_embeds=prompt, negative_prompt_embeds=negative, seed=1, steps=3)
    assert np.array_equal(made.latents, expected.latents)


@pytest.mark.parametrize("seed", [[3], [3, 4]], ids=["one seed", "two seeds"])
def test_images_become_python_s_latents(shapes: native.Engine, python_shapes: ebca.Engine, seed: list[int]) -> None:
    given = [image(64, 48), image(30, 90, seed=1)]
    pixels = load_images(given, 48, 64)
    mean, _ = python_shapes.encode_image(pixels)
    assert np.array_equal(shapes.encode_images(given, height=48, width=64), mean)
    preparation = LatentPreparation(python_shapes, [NormalStream(one) for one in seed], mean.shape)
    made = shapes.encode_images(given, height=48, width=64, sample=True, seed=seed)
    assert np.array_equal(made, preparation._encode(pixels)) and not np.array_equal(made, mean)


def test_images_have_the_model_s_size_where_none_is_given(shapes: native.Engine) -> None:
    assert shapes.encode_images(image(64, 64)).shape == (1, 4, 16, 16)
    random = [shapes.encode_images(image(64, 64), sample=True) for _ in range(2)]
    assert not np.array_equal(*random)


def test_latents_become_python_s_images(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    given = latents(2, 4, 8, 12)
    assert np.array_equal(shapes.decode(given), to_bytes(to_unit_range(python_shapes.decode(given))))


def test_previews_are_python_s(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    given = latents(2, 4, 9, 13) * 3
    preview = LinearPreview.fit(python_shapes, (64, 64))
    made = shapes.preview(given, 0.5)
    assert made.shape == (2, 9, 13, 3) and made.std() > 20
    assert np.array_equal(made, to_bytes(preview.colours(given * np.float32(0.5))))


def test_stages_run_in_a_step_callback(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def look(info: structures.StepInfo) -> None:
        array = view(info.latents)
        assert array is not None
        seen.append((shapes.preview(array, info.unit_scale), shapes.decode(array * info.unit_scale)))
        assert shapes.encode_prompt("a star").shape[0] == 1

    ask: dict[str, Any] = {"steps": 3, "scheduler": "euler", "seed": 2, "gamma_norm": 0.01}
    with shapes.session() as session:
        expected = session.generate(TEXTS[0], **ask)
        made = session.generate(TEXTS[0], **ask, on_step=look)
    assert np.array_equal(made.pixels, expected.pixels)
    assert [small.shape for small, _ in seen] == [(1, 16, 16, 3)] * 3
    assert np.array_equal(seen[-1][1], expected.pixels)
    # The first one shows what Python's shows.
    shown: list[np.ndarray] = []
    preview = LinearPreview.fit(python_shapes, (64, 64))
    with python_shapes.session() as python:
        python.generate(TEXTS[0], **ask, on_step=lambda info: shown.append(preview.colours(info.unit_latents)))
    assert np.array_equal(seen[0][0], to_bytes(shown[0]))


def test_stages_run_on_many_threads(shapes: native.Engine) -> None:
    given = latents(1, 4, 16, 16)
    expected = shapes.encode_prompt(TEXTS[0]), shapes.decode(given), shapes.preview(given)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            made = shapes.encode_prompt(TEXTS[0]), shapes.decode(given), shapes.preview(given)
            wrong.extend("differs" for a, b in zip(made, expected, strict=True) if not np.array_equal(a, b))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wrong_latents_are_refused(shapes: native.Engine) -> None:
    for given, what in (
        (latents(1, 3, 8, 8), "latents have 3 channels, the VAE has 4"),
        (latents(4, 8, 8), r"latents have shape \[4, 8, 8\]"),
        (np.full((1, 4, 2, 2), np.nan, np.float32), "not finite"),
    ):
        for call in (shapes.decode, shapes.preview):
            with pytest.raises(ParameterError, match=what):
                call(given)
    with pytest.raises(ParameterError, match="scale is inf"):
        shapes.preview(latents(1, 4, 2, 2), np.inf)
    with pytest.raises(NumericalError):
        shapes.preview(latents(1, 4, 2, 2) * np.float32(1e38), 1e38)


def test_wrong_images_and_texts_are_refused(shapes: native.Engine) -> None:
    with pytest.raises(ParameterError, match="height is 63; give a multiple of 4, such as 60 or 64"):
        shapes.encode_images(image(8, 8), height=63)
    with pytest.raises(ParameterError, match="seeds"):
        shapes.encode_images([image(8, 8)] * 3, sample=True, seed=[1, 2])
    with pytest.raises(ParameterError, match="images is NULL"):
        shapes.encode_images([])
    with pytest.raises(ParameterError, match="texts is NULL"):
        shapes.encode_prompt([])
    with pytest.raises(ParameterError, match="is not closed"):
        shapes.encode_prompt("a (red:1.3 circle")
    with pytest.raises(ParameterError, match="clip_skip is 2"):
        shapes.encode_prompt("a red circle", clip_skip=2)


def test_null_is_refused(shapes: native.Engine) -> None:
    lib, out = shapes.library.lib, ctypes.c_void_p()
    tensor = structures.Tensor()
    for name, extra in (("encode_prompt", ()), ("encode_images", ()), ("decode", ()), ("preview", (1.0,))):
        call = getattr(lib, f"ebca_engine_{name}")
        assert call(None, None, *extra, ctypes.byref(out)) == structures.Status.PARAMETER
        assert lib.ebca_last_problem() == b"the engine is NULL"
        assert call(shapes.handle, None, *extra, ctypes.byref(out)) == structures.Status.PARAMETER
        assert call(shapes.handle, None, *extra, None) == structures.Status.PARAMETER
        assert lib.ebca_last_problem() == b"the pointer that receives the result is NULL"
        assert not out
    assert lib.ebca_engine_decode(shapes.handle, ctypes.byref(tensor), ctypes.byref(out)) == structures.Status.PARAMETER
    assert lib.ebca_last_problem() == b"latents.data is NULL"


def test_a_closed_engine_is_refused(library: native.Library, shapes_dir: Any) -> None:
    engine = library.open(shapes_dir)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.decode(latents(1, 4, 8, 8))


def test_the_memory_of_decoding_is_given_back(shapes_dir: Path, library_file: Path, onnxruntime_file: Path) -> None:
    check_given_back(shapes_dir, library_file, onnxruntime_file)
