"""InstructPix2Pix: equality with diffusers' pipeline, the update, batches, and errors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import mask_image, runner, sample_image, tiny_pipeline  # noqa: E402
from PIL import Image  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.runtime.cli.run import main  # noqa: E402

# As in test_inpainting.py; a part of the guidance left out gives 1e-2 or more.
LIMIT = 2e-5
SAME = 1e-5
PROMPT, OTHER = "make it a painting", "a red car in the snow"

Pipeline = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def engine(tiny_instruction_dir: Path) -> Iterator[ebca.Engine]:
    with ebca.load(tiny_instruction_dir, backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module")
def session(engine: ebca.Engine) -> Iterator[ebca.Session]:
    with engine.session(64, 64) as session:
        yield session


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    folder = tmp_path_factory.mktemp("instruct")
    return runner(tiny_pipeline(StableDiffusionInstructPix2PixPipeline, folder, in_channels=8))


def changed(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    given: dict[str, Any] = {"image": sample_image(), "steps": 5, "seed": 1, "output": "latents"}
    return session.generate(prompt, **given | kwargs).latents


@pytest.mark.parametrize(
    "ask",
    [
        {"scheduler": "pndm"},
        {"scheduler": "ddim", "guidance_scale": 5.0, "image_guidance_scale": 1.2, "negative_prompt": "blurry"},
        {"scheduler": "euler", "image_guidance_scale": 2.5},
        {"scheduler": "ddim", "guidance_scale": 1.0},
    ],
)
def test_it_equals_the_diffusers_pipeline(session: ebca.Session, instruct: Pipeline, ask: dict[str, Any]) -> None:
    made = changed(session, **ask)
    expected = instruct(PROMPT, image=sample_image(), **{"guidance_scale": 7.5, "image_guidance_scale": 1.5} | ask)
    assert relative_l2(made, expected) <= LIMIT


def test_the_images_equal_the_diffusers_pipeline(session: ebca.Session, instruct: Pipeline) -> None:
    made = session.generate(PROMPT, image=sample_image(), steps=5, seed=1, scheduler="ddim", output="np")
    expected = instruct(PROMPT, image=sample_image(), scheduler="ddim", output_type="np")
    assert relative_l2(made.images, expected) <= LIMIT
    assert (made.parameters["task"], made.parameters["image_guidance_scale"]) == ("instruction", 1.5)


def test_a_batch_equals_the_diffusers_pipeline_and_single_runs(
    engine: ebca.Engine, session: ebca.Session, instruct: Pipeline
) -> None:
    images, seeds = [sample_image(1), sample_image(2)], [3, 4]
    update: dict[str, Any] = {"gamma_attn": 0.03, "gamma_norm": 0.2, "token_weights": {0: 2.0}}
    update["edits"] = [ebca.Edit("oil painting", alpha=0.5)]
    with engine.session(64, 64, batch=2) as batch:
        made = changed(batch, [PROMPT, OTHER], image=images, seed=seeds, scheduler="ddim")
        together = changed(batch, [PROMPT, OTHER], image=images, seed=seeds, **update)
    expected = instruct([PROMPT, OTHER], image=images, seed=seeds, scheduler="ddim")
    assert relative_l2(made, expected) <= LIMIT
    for i, prompt in enumerate([PROMPT, OTHER]):
        alone = changed(session, prompt, image=images[i], seed=seeds[i], **update)
        assert relative_l2(together[i], alone[0]) <= SAME
        assert relative_l2(alone[0], made[i]) > 1e-3


def test_rows_without_the_prompt_are_unconditional(session: ebca.Session) -> None:
    """The last row alone has the prompt's contexts; editing contexts of the other two are tied as with two rows."""
    seen: list[np.ndarray] = []
    changed(session, steps=1, on_step=lambda info: seen.append(np.array(info.contexts)))
    unconditional, image, conditional = seen[0]
    assert np.array_equal(unconditional, image)
    assert not np.array_equal(image, conditional)


def test_subjects_and_telemetry_know_three_rows(session: ebca.Session, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"image": sample_image(), "steps": 2, "seed": 1, "output": "latents"}
    plain = session.generate("a cat and a dog", **ask)
    made = session.generate("a cat and a dog", subjects=["cat", "dog"], energies=True, attention_maps=True, **ask)
    assert relative_l2(made.latents, plain.latents) > 1e-5
    assert made.energies is not None and made.energies.shape[3] == 3
    assert made.attention_maps is not None and np.allclose(made.attention_maps.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"image": None}, ebca.EngineError, r"takes 8 channels \(InstructPix2Pix\); give image"),
        ({"mask": mask_image()}, ebca.ParameterError, "mask was given, but this model changes an image"),
        ({"strength": 0.5}, ebca.ParameterError, "strength was given, but"),
        ({"repaint": ebca.RePaint()}, ebca.ParameterError, "repaint was given, but"),
        ({"image_guidance_scale": 0.5}, ebca.ParameterError, "image_guidance_scale is 0.5; give 1 or more"),
        ({"image_guidance_scale": float("nan")}, ebca.ParameterError, "image_guidance_scale"),
        ({"image_guidance_scale": 2, "guidance_scale": 1}, ebca.ParameterError, "turns guidance off"),
    ],
)
def test_bad_input_is_refused(
    session: ebca.Session, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        changed(session, **given)


def test_other_models_have_no_image_guidance(tiny_engine_dir: Path) -> None:
    with (
        ebca.load(tiny_engine_dir, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(ebca.ParameterError, match="this model is not InstructPix2Pix; leave image_guidance_scale out"),
    ):
        changed(session, image_guidance_scale=1.5)


def test_inversion_is_refused(session: ebca.Session) -> None:
    with pytest.raises(ebca.EngineError, match="another that sees an image"):
        session.invert(sample_image(), PROMPT)


def test_the_command_line_makes_and_repeats_it(
    tiny_instruction_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_image().save(tmp_path / "in.png")
    made, again = tmp_path / "out.png", tmp_path / "again.png"
    common = ["--quiet", "--json", "--backend", "onnxruntime"]
    given = ["--engine", str(tiny_instruction_dir), "--image", str(tmp_path / "in.png"), "--prompt", PROMPT]
    given += ["--steps", "2", "--seed", "1", "--image-guidance-scale", "2", "--height", "64", "--width", "64"]
    assert main([*common, *given, "--output", str(made)]) == 0
    capsys.readouterr()
    assert main([*common, "--from-image", str(made), "--output", str(again)]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["image_guidance_scale"] == 2
    assert Image.open(again).tobytes() == Image.open(made).tobytes()
