"""ebca-run with Stable Diffusion XL: options, what images record, files of prompts, and real images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.pipelines import sample_image
from PIL import Image

import ebca
from ebca.runtime.cli import run as cli
from ebca.runtime.images.files import read_parameters

PROMPT = "a lion with a crown"
SIZES = ("--original-size", "64", "80", "--crops-coords-top-left", "1", "2", "--target-size", "90", "70")
NEGATIVE = ("--negative-original-size", "32", "33", "--negative-target-size", "34", "35")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(engine: Path, *more: str) -> int:
    return cli.main(["--engine", str(engine), "--backend", "onnxruntime", "--steps", "2", "--quiet", *more])


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).copy()


def test_options_are_fields_and_repeat_from_the_image(tiny_xl_dir: Path, xl_session: ebca.Session, here: Path) -> None:
    options = ("--prompt-2", "a dog", "--negative-prompt", "snow", "--negative-prompt-2", "a car", *SIZES, *NEGATIVE)
    assert ran(tiny_xl_dir, "--prompt", PROMPT, "--seed", "1", "--output", "a.png", *options) == 0
    expected: dict[str, Any] = {
        "prompt_2": "a dog",
        "negative_prompt": "snow",
        "negative_prompt_2": "a car",
        "original_size": [64, 80],
        "crops_coords_top_left": [1, 2],
        "target_size": [90, 70],
        "negative_original_size": [32, 33],
        "negative_target_size": [34, 35],
    }
    recorded = read_parameters(here / "a.png")
    assert {name: recorded[name] for name in expected} == expected
    assert np.array_equal(
        pixels("a.png"), np.asarray(xl_session.generate(PROMPT, steps=2, seed=1, **expected).images[0])
    )
    assert cli.main(["--from-image", "a.png", "--output", "b.png", "--quiet"]) == 0
    assert np.array_equal(pixels("b.png"), pixels("a.png"))
    assert cli.main(["--from-image", "a.png", "--output", "c.png", "--quiet", "--target-size", "10", "10"]) == 0
    assert read_parameters(here / "c.png")["target_size"] == [10, 10]
    assert not np.array_equal(pixels("c.png"), pixels("a.png"))


def test_lines_of_a_file_have_these_fields(tiny_xl_dir: Path, here: Path) -> None:
    lines = [PROMPT, json.dumps({"prompt": PROMPT, "prompt_2": "a dog", "original_size": [64, 64], "seed": 1})]
    lines.append(json.dumps({"prompt": PROMPT, "vae_tiling": True, "width": 136, "seed": 1}))
    (here / "prompts.txt").write_text("\n".join(lines))
    words = ("--prompts-file", "prompts.txt", "--seed", "1", "--output", "{number}.png", "--target-size", "50", "60")
    assert ran(tiny_xl_dir, *words) == 0
    recorded = [read_parameters(here / f"{number}.png") for number in (1, 2, 3)]
    assert [one.get("prompt_2") for one in recorded] == [None, "a dog", None]
    assert [one.get("original_size") for one in recorded] == [None, [64, 64], None]
    assert [one.get("target_size") for one in recorded] == [[50, 60]] * 3
    assert [one["vae_tiling"] for one in recorded] == [False, False, True]


def test_a_wrong_size_names_its_line(tiny_xl_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "prompts.txt").write_text(f'{PROMPT}\n{{"prompt": "a", "original_size": [1]}}')
    assert ran(tiny_xl_dir, "--prompts-file", "prompts.txt") == 1
    assert "line 2 of 'prompts.txt': original_size is (1,); give two whole numbers" in capsys.readouterr().err


def test_real_images_are_inverted_with_the_same_conditions(
    tiny_xl_dir: Path, xl_session: ebca.Session, here: Path
) -> None:
    sample_image(size=(128, 128)).save("real.png")
    words = (
        "--image",
        "real.png",
        "--source-prompt",
        "a cat",
        "--editing-prompt",
        "a dog",
        "--prompt-2",
        "a car",
        *SIZES,
    )
    assert ran(tiny_xl_dir, *words, "--output", "a.png") == 0
    sizes: dict[str, Any] = {"original_size": (64, 80), "crops_coords_top_left": (1, 2), "target_size": (90, 70)}
    found = xl_session.invert("real.png", "a cat", steps=2, prompt_2="a car", **sizes)
    made = xl_session.generate(
        "a cat",
        negative_prompt="a cat",
        prompt_2="a car",
        latents=found.latents,
        scheduler="ddim",
        steps=2,
        edits=[ebca.Edit("a dog")],
        **sizes,
    )
    assert np.array_equal(pixels("a.png"), np.asarray(made.images[0]))


def test_engines_with_one_encoder_refuse_them(
    tiny_engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(tiny_engine_dir, "--prompt", PROMPT, "--target-size", "1", "2") == 1
    assert "target_size is for models that take pooled embeddings and sizes" in capsys.readouterr().err
