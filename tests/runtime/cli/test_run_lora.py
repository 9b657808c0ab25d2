"""ebca-run with LoRAs and embeddings: one line for mistakes, the directory's path, and repeating an image."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import loras
from PIL import Image

import ebca
from ebca.runtime.cli.run import main

ARGS = ["--prompt", "a red <toy>", "--steps", "2", "--seed", "1", "--height", "64", "--width", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    vectors = np.random.default_rng(0).standard_normal((2, 32), np.float32)
    return loras.write(folder / "a.safetensors"), loras.write(folder / "toy.safetensors", {"<toy>": vectors})


def test_an_image_and_the_same_again(
    tiny_engine_dir: Path, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, embedding = files
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    merge = ["--lora", f"{lora}:0.5", "--embedding", str(embedding)]
    assert main(["--engine", str(tiny_engine_dir), *ARGS, *merge, "--output", str(first)]) == 0
    out, err = capsys.readouterr()
    assert f"wrote {first}" in out and "of weights with the LoRAs and embeddings; later starts skip this" in err
    parameters = ebca.read_parameters(first)
    assert parameters["engine"] == str(tiny_engine_dir)
    assert [(one["kind"], one["scale"], one["token"]) for one in parameters["adapters"]] == [
        *(("lora", 0.5, None), ("embedding", None, "<toy>")),
    ]
    assert main(["--from-image", str(first), "--output", str(again)]) == 0
    assert "another engine" not in capsys.readouterr().err
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    plain = ["--from-image", str(first), "--lora", f"{lora}:1", "--embedding", str(embedding), "--output", str(again)]
    assert main(plain) == 0
    assert "was made with another engine (LoRAs and embeddings lora" in capsys.readouterr().err
    assert (np.asarray(Image.open(first)) != np.asarray(Image.open(again))).any()


def test_the_directory_for_other_hosts(
    tiny_engine_dir: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--engine", str(tiny_engine_dir), "--print-engine-directory"]
    assert main([*args, "--lora", f"{files[0]}:0.25"]) == 0
    path = Path(capsys.readouterr().out.strip())
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["derived"]["base"] == str(tiny_engine_dir)
    assert main(args) == 0
    assert capsys.readouterr().out.strip() == str(tiny_engine_dir)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--lora", "none.safetensors:0.5"], "'none.safetensors' cannot be read: No such file"),
        (["--lora", "{lora}:nan"], "the scale of '.*' is nan"),
        (["--embedding", "{lora}"], "has 30 tensors; a textual inversion has one"),
        (["--embedding", "{embedding}=red"], "the token 'red' of .* exists already"),
    ],
)
def test_mistakes_are_one_line(
    tiny_engine_dir: Path,
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    option: list[str],
    message: str,
) -> None:
    import re

    option = [text.format(lora=files[0], embedding=files[1]) for text in option]
    assert main(["--engine", str(tiny_engine_dir), *ARGS, *option]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_session_says_where_loras_belong(tiny_engine_dir: Path) -> None:
    with ebca.load(tiny_engine_dir) as engine, pytest.raises(ebca.ParameterError, match=r"Engine\.with_lora"):
        engine.generate("a cat", lora=["a.safetensors"])
