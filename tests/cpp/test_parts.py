"""A library built without the tokenizer and without resizing, for hosts that bring embeddings and images that fit."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import building

import ebca
from ebca.runtime import native
from ebca.runtime.native.structures import Status

CPP = Path(__file__).parents[2] / "runtime" / "cpp"
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def bare(
    cmake_build: Path, header_options: list[str], onnxruntime_file: Path, shapes_dir: Path
) -> Iterator[native.Session]:
    with building.building(cmake_build):
        building.run("cmake", "-S", CPP, "-B", cmake_build, "-DEBCA_BUILD_TESTS=ON", *header_options)
        building.run("cmake", "--build", cmake_build, "--target", "ebca_bare", "ebca_bare_static")
    library = native.Library(cmake_build / "libebca_bare.so", onnxruntime_file)
    with library.open(shapes_dir) as engine, engine.session() as session:
        yield session


def test_texts_are_refused_without_the_tokenizer(bare: native.Session) -> None:
    with pytest.raises(native.NativeError, match=r"without the tokenizer.*pass prompt\.embeds") as caught:
        bare.generate(PROMPT, steps=1)
    assert caught.value.status == Status.UNSUPPORTED


def test_texts_are_refused_by_the_static_library_too(
    bare: native.Session, cmake_build: Path, onnxruntime_file: Path, shapes_dir: Path, tmp_path: Path
) -> None:
    host, library = Path(__file__).parent / "abi" / "host.c", cmake_build / "libebca_bare_static.a"
    words = ["-DEBCA_STATIC", f"-I{CPP / 'include'}", host, library, "-lz", "-ldl", "-lm", "-pthread"]
    building.run("cc", *words, *building.standard_library(), "-o", tmp_path / "host")
    environment = {**os.environ, "EBCA_ORT_LIB": str(onnxruntime_file)}
    done = subprocess.run([tmp_path / "host", shapes_dir], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout.startswith("generate: this library was built without the tokenizer")


def test_embeddings_make_the_same_image(
    bare: native.Session, shapes: native.Engine, python_shapes: ebca.Engine
) -> None:
    embeds = [python_shapes.encode(python_shapes.tokenizer.encode([text]).ids).contexts for text in (PROMPT, "")]
    given = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "steps": 2, "seed": 1}
    with shapes.session() as session:
        expected = session.generate(PROMPT, steps=2, seed=1).pixels
    assert np.array_equal(bare.generate(**given).pixels, expected)


def test_only_images_that_fit_are_accepted_without_resizing(bare: native.Session, python_shapes: ebca.Engine) -> None:
    embeds = python_shapes.encode(python_shapes.tokenizer.encode([PROMPT]).ids).contexts
    image = np.full((64, 64, 3), 200, np.uint8)
    given = {"prompt_embeds": embeds, "guidance_scale": 1.0, "steps": 2, "seed": 1, "strength": 1.0}
    assert bare.generate(image=image, **given).task == "image-to-image"
    for wrong in (image[:32], image[:, :63]):
        with pytest.raises(native.NativeError, match=r"without resizing.*; give 64 x 64 pixels") as caught:
            bare.generate(image=wrong, **given)
        assert caught.value.status == Status.UNSUPPORTED
    assert bare.generate(image=image, **given).task == "image-to-image"
