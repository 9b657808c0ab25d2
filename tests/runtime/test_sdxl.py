"""Stable Diffusion XL: equality with diffusers' pipelines, from the same seeds, with gammas of 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import generators, mask_image, sample_image, tiny_xl_pipeline  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402

# Both loops run in float32 on different libraries. One evaluation differs by up to 3e-6, and five guided steps add up
# such errors. A wrong embedding, size or noise level gives 1e-3 or more.
LIMIT = 2e-5
# Of pixels in [0, 1], which the VAE makes of latents with that error.
IMAGE_LIMIT = 1e-4

PROMPT = "a lion with a crown"
OTHER = "a red car in the snow"
STEPS = 5
SIZE = (128, 128)

Pipeline = Callable[..., tuple[list[np.ndarray], np.ndarray]]


def runner(pipeline: Any) -> Pipeline:
    """A function that returns the latents after each step, and the images."""

    def run(prompt: Any, *, seed: int | list[int] = 1, **kwargs: Any) -> tuple[list[np.ndarray], np.ndarray]:
        seen: list[np.ndarray] = []

        def note(_: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            seen.append(given["latents"].numpy().copy())
            return given

        asked = {"num_inference_steps": STEPS, "output_type": "np", "callback_on_step_end": note} | kwargs
        return seen, pipeline(prompt, generator=generators(seed), **asked).images

    return run


@pytest.fixture(scope="module")
def text_to_image(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from diffusers import StableDiffusionXLPipeline

    return runner(tiny_xl_pipeline(StableDiffusionXLPipeline, tmp_path_factory.mktemp("xl")))


def check(session: ebca.Session, pipeline: Pipeline, prompt: Any, ours: Any, theirs: Any, seed: Any = 1) -> ebca.Result:
    """Compare every step and the images of one request; the two take the same parameters but for their names."""
    seen: list[np.ndarray] = []
    made = session.generate(
        prompt, steps=STEPS, seed=seed, output="np", on_step=lambda info: seen.append(info.latents.copy()), **ours
    )
    expected, images = pipeline(prompt, seed=seed, **theirs)
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        assert relative_l2(one, other) <= LIMIT
    assert np.abs(made.images - images).max() <= IMAGE_LIMIT
    return made


SIZES = {"original_size": (64, 200), "crops_coords_top_left": (3, 17), "target_size": (100, 90)}
NEGATIVE_SIZES = {
    "negative_original_size": (32, 40),
    "negative_crops_coords_top_left": (1, 2),
    "negative_target_size": (77, 99),
}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # Without a negative prompt: zeros.
        ({}, {}),
        ({"guidance_scale": 1}, {"guidance_scale": 1}),
        # A text of one space is encoded.
        ({"negative_prompt": " "}, {"negative_prompt": " "}),
        ({"negative_prompt": "blurry", "guidance_scale": 7.5}, {"negative_prompt": "blurry", "guidance_scale": 7.5}),
        ({"prompt_2": OTHER, "negative_prompt": "snow", "negative_prompt_2": "car"},) * 2,
        # Empty for the first encoder alone: both are encoded.
        ({"negative_prompt": "", "negative_prompt_2": "car"},) * 2,
        (SIZES,) * 2,
        ({**SIZES, **NEGATIVE_SIZES, "negative_prompt": "blurry"},) * 2,
        # diffusers does not apply it to negative prompts, so here they are zeros.
        ({"clip_skip": 1},) * 2,
    ],
)
def test_text_to_image_equals_the_diffusers_pipeline(
    xl_session: ebca.Session, text_to_image: Pipeline, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    check(xl_session, text_to_image, PROMPT, ours, theirs)


def test_the_default_guidance_scale_is_that_of_diffusers(xl_session: ebca.Session) -> None:
    assert xl_session.generate(PROMPT, steps=1, seed=1, output="latents").parameters["guidance_scale"] == 5.0


def test_several_images_equal_the_diffusers_pipeline(xl_engine: ebca.Engine, text_to_image: Pipeline) -> None:
    given = {"negative_prompt": ["a dog", "snow"], "prompt_2": [OTHER, PROMPT], **SIZES}
    with xl_engine.session(96, 160, batch=2) as session:
        theirs = {**given, "height": 96, "width": 160}
        check(session, text_to_image, [PROMPT, OTHER], given, theirs, [3, 2**40 + 5])
        # Zeros for one of them alone, as a run of its own has them.
        both = session.generate([PROMPT, OTHER], negative_prompt=["", "snow"], steps=2, seed=[1, 2], output="latents")
    with xl_engine.session(96, 160) as session:
        alone = [
            session.generate(text, negative_prompt=negative, steps=2, seed=seed, output="latents").latents
            for text, negative, seed in ((PROMPT, "", 1), (OTHER, "snow", 2))
        ]
    # The same sums in another order, because a matrix product has more rows.
    assert relative_l2(both.latents, np.concatenate(alone)) <= 1e-5


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_image_to_image_equals_the_diffusers_pipeline(
    xl_session: ebca.Session, tmp_path: Path, strength: float
) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipeline = runner(tiny_xl_pipeline(StableDiffusionXLImg2ImgPipeline, tmp_path))
    given = {"image": sample_image(size=SIZE), "strength": strength, "negative_prompt": "blurry", **SIZES}
    check(xl_session, pipeline, PROMPT, given, given)


@pytest.mark.parametrize("strength", [0.6, None])
def test_inpainting_equals_the_diffusers_pipeline(
    tiny_xl_inpainting_dir: Path, tmp_path: Path, strength: float | None
) -> None:
    from diffusers import StableDiffusionXLInpaintPipeline

    pipeline = runner(tiny_xl_pipeline(StableDiffusionXLInpaintPipeline, tmp_path, in_channels=9))
    image, mask = sample_image(size=SIZE), mask_image((32, 16, 100, 84), SIZE)
    shared = {"image": image, "negative_prompt": "blurry", "prompt_2": OTHER, "guidance_scale": 7.5, **SIZES}
    ours = {"mask": mask, "composite": False, **shared} | ({} if strength is None else {"strength": strength})
    theirs = {"mask_image": mask, "strength": strength or 1.0, **shared}
    with ebca.load(tiny_xl_inpainting_dir, backend="onnxruntime") as engine, engine.session() as session:
        check(session, pipeline, PROMPT, ours, theirs)
