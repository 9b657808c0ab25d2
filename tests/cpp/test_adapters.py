"""A derived engine directory in the library: LoRAs need nothing, and tokens of several vectors are expanded."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import loras

import ebca
from ebca.errors import EngineError
from ebca.runtime import native

PROMPT = "a red <mood>, a <toy> and <MOOD>"


@pytest.fixture(scope="module")
def engine(tiny_engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ebca.Engine]:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    values = {"<toy>": rng.standard_normal(32, np.float32), "<mood>": rng.standard_normal((3, 32), np.float32)}
    embedding = [
        loras.write(folder / f"{index}.safetensors", {name: v}) for index, (name, v) in enumerate(values.items())
    ]
    lora = loras.write(folder / "lora.safetensors")
    with ebca.load(tiny_engine_dir, backend="onnxruntime", lora=f"{lora}:0.5", embedding=embedding) as opened:
        yield opened


def test_images_are_those_of_python(library: native.Library, engine: ebca.Engine) -> None:
    request = {"steps": 2, "scheduler": "ddim", "seed": 3, "gamma_attn": 0.01, "token_weights": {"<mood>": 2.0}}
    with engine.session(64, 64) as python:
        expected = python.generate(PROMPT, output="latents", **request).latents
    opened = library.open(engine.directory.path)
    session = opened.session(64, 64)
    found = session.generate(PROMPT, output="latents", **request)
    np.testing.assert_array_equal(found.latents, expected)
    session.close()
    opened.close()


def test_expansions_are_read_strictly(library: native.Library, engine: ebca.Engine, tmp_path: Path) -> None:
    from helpers.tiny import changed_copy

    for index, ids in enumerate(([], [-1], ["a"], 1)):
        folder = changed_copy(
            engine.directory.path,
            tmp_path / str(index),
            lambda manifest, ids=ids: manifest["tokenizer"]["info"].update(expansions={"<a>": ids}),
        )
        with pytest.raises(EngineError):
            ebca.load(folder)
        with pytest.raises(EngineError):
            library.open(folder)
