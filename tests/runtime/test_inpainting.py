"""Inpainting with a model trained for it: equality with diffusers' pipeline, the update, and errors."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from helpers.pipelines import mask_image, runner, sample_image, tiny_pipeline  # noqa: E402
from PIL import Image  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.runtime.images.inputs import latent_mask, load_masks  # noqa: E402

# Both loops run in float32 on different libraries. One evaluation differs by up to 3e-6, and five guided steps add up
# such errors. A wrong timestep, noise level, draw or mask gives 1e-2 or more.
LIMIT = 2e-5
# The same sums in another order, because a matrix product has more rows.
SAME = 1e-5

PROMPT = "a lion with a crown"
OTHER = "a red car in the snow"

Pipeline = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def inpainting_engine(tiny_inpainting_dir: Path) -> Iterator[ebca.Engine]:
    with ebca.load(tiny_inpainting_dir, backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module")
def inpainting(inpainting_engine: ebca.Engine) -> Iterator[ebca.Session]:
    with inpainting_engine.session(64, 64) as session:
        yield session


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from diffusers import StableDiffusionInpaintPipeline

    return runner(tiny_pipeline(StableDiffusionInpaintPipeline, tmp_path_factory.mktemp("inpaint"), in_channels=9))


def filled(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    given: dict[str, Any] = {"image": sample_image(), "mask": mask_image(), "steps": 5, "seed": 1, "output": "latents"}
    return session.generate(prompt, **given | kwargs).latents


# --- against diffusers


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "euler"])
def test_inpainting_equals_the_diffusers_pipeline(inpainting: ebca.Session, inpaint: Pipeline, scheduler: str) -> None:
    # The threshold: grey 127 is outside the hole, 128 inside.
    mask = np.array(mask_image((10, 5, 51, 40)))
    mask[5:20, 45:51], mask[5:20, 40:45] = 127, 128
    ask: dict[str, Any] = {"image": sample_image(), "scheduler": scheduler, "negative_prompt": "blurry"}
    made = filled(inpainting, mask=mask, **ask)
    expected = inpaint(PROMPT, mask_image=Image.fromarray(mask), height=64, width=64, strength=1.0, **ask)
    assert relative_l2(made, expected) <= LIMIT


@pytest.mark.parametrize(("scheduler", "strength"), [("ddim", 0.6), ("euler", 0.4), ("ddim", 1.0)])
def test_inpainting_with_strength_equals_the_diffusers_pipeline(
    inpainting: ebca.Session, inpaint: Pipeline, scheduler: str, strength: float
) -> None:
    ask: dict[str, Any] = {"image": sample_image(), "scheduler": scheduler, "strength": strength}
    expected = inpaint(PROMPT, mask_image=mask_image(), height=64, width=64, **ask)
    assert relative_l2(filled(inpainting, **ask), expected) <= LIMIT


def test_several_inpainted_images_with_strength_equal_the_diffusers_pipeline(
    inpainting_engine: ebca.Engine, inpaint: Pipeline
) -> None:
    ask: dict[str, Any] = {"image": [sample_image(1), sample_image(2)], "seed": [3, 4], "strength": 0.7}
    ask["scheduler"] = "ddim"
    with inpainting_engine.session(64, 64, batch=2) as session:
        made = filled(session, [PROMPT, OTHER], **ask)
    expected = inpaint([PROMPT, OTHER], mask_image=[mask_image()] * 2, height=64, width=64, **ask)
    assert relative_l2(made, expected) <= LIMIT


def test_inpainted_images_equal_the_diffusers_pipeline(inpainting: ebca.Session, inpaint: Pipeline) -> None:
    """diffusers does not copy pixels back outside the mask; composite=False does the same."""
    made = inpainting.generate(
        PROMPT, image=sample_image(), mask=mask_image(), steps=5, seed=1, scheduler="ddim", composite=False, output="np"
    )
    expected = inpaint(
        PROMPT, image=sample_image(), mask_image=mask_image(), height=64, width=64, strength=1.0, scheduler="ddim",
        output_type="np",
    )  # fmt: skip
    assert relative_l2(made.images, expected) <= LIMIT


def test_several_inpainted_images_equal_the_diffusers_pipeline(
    inpainting_engine: ebca.Engine, inpaint: Pipeline
) -> None:
    images, masks = [sample_image(1), sample_image(2)], [mask_image(), mask_image((0, 0, 30, 64))]
    with inpainting_engine.session(64, 64, batch=2) as session:
        for seed in (3, [3, 4]):
            made = filled(session, [PROMPT, OTHER], image=images, mask=masks, seed=seed, scheduler="ddim")
            expected = inpaint(
                [PROMPT, OTHER], image=images, mask_image=masks, seed=seed, scheduler="ddim", height=64, width=64,
                strength=1.0,
            )  # fmt: skip
            assert relative_l2(made, expected) <= LIMIT


def test_inpainting_images_with_seeds_equal_single_runs(
    inpainting_engine: ebca.Engine, inpainting: ebca.Session
) -> None:
    prompts, seeds, images = [PROMPT, OTHER], [5, 6], [sample_image(1), sample_image(2)]
    masks = [mask_image(), mask_image((0, 0, 30, 64))]
    ask: dict[str, Any] = {"gamma_attn": 0.03, "gamma_norm": 0.2, "edits": [ebca.Edit("oil painting", alpha=0.5)]}
    with inpainting_engine.session(64, 64, batch=2) as batch:
        together = filled(batch, prompts, image=images, mask=masks, seed=seeds, **ask)
        one_for_all = filled(batch, PROMPT, image=images[0], mask=masks[1], seed=seeds, **ask)
    for i in range(2):
        alone = filled(inpainting, prompts[i], image=images[i], mask=masks[i], seed=seeds[i], **ask)
        assert relative_l2(together[i], alone[0]) <= SAME
        alone = filled(inpainting, image=images[0], mask=masks[1], seed=seeds[i], **ask)
        assert relative_l2(one_for_all[i], alone[0]) <= SAME


def nine_channels(session: ebca.Session, mask: np.ndarray) -> np.ndarray:
    """The UNet's input at the first evaluation of seed 1: noise, mask, and latents of the masked image."""
    pixels = np.where(mask[0, 0][..., None] > 0, np.float32(0.5), np.asarray(sample_image(), np.float32) / 255)
    mean, std = session.engine.encode_image(pixels[None])
    draws = torch.randn((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(1)).numpy()
    return np.concatenate([draws[:1], latent_mask(mask, 8), mean + std * draws[1:]], 1)


@settings(max_examples=5, deadline=None)
@given(st.floats(0, 0.06), st.floats(0, 0.4), st.booleans(), st.booleans())
def test_the_update_of_an_inpainting_model_is_computed_in_the_hole(
    inpainting: ebca.Session, gamma_attn: float, gamma_norm: float, everywhere: bool, guided: bool
) -> None:
    """One evaluation. A mask of ones equals no mask."""
    mask = np.ones((1, 1, 64, 64), np.float32) if everywhere else load_masks(mask_image(), 64, 64)
    seen: list[np.ndarray] = []
    filled(
        inpainting, mask=mask[0, 0], steps=1, scheduler="ddim", gamma_attn=gamma_attn, gamma_norm=gamma_norm,
        guidance_scale=5.0 if guided else 1.0, on_step=lambda info: seen.append(info.contexts.copy()),
    )  # fmt: skip
    texts = ["", PROMPT] if guided else [PROMPT]
    contexts = inpainting.engine.encode(inpainting.engine.tokenizer.encode(texts).ids).contexts[:, None]
    sample = np.repeat(nine_channels(inpainting, mask), len(texts), 0)
    control = ebca.EnergyControl(gamma_attn, gamma_norm, mask=None if everywhere else latent_mask(mask, 8))
    expected = ebca.Denoiser(inpainting.engine)(sample, 1, contexts, control).contexts
    assert relative_l2(seen[0], expected) <= 1e-6


@pytest.mark.parametrize("output", ["pil", "np"])
def test_pixels_outside_the_mask_are_kept(inpainting: ebca.Session, output: str) -> None:
    given: dict[str, Any] = {"image": sample_image(), "mask": mask_image((5, 3, 50, 42)), "steps": 2, "seed": 1}
    hole = np.asarray(given["mask"]) > 0
    source = np.asarray(sample_image()) if output == "pil" else np.asarray(sample_image(), np.float32) / 255
    pasted = np.asarray(inpainting.generate(PROMPT, **given, output=output).images[0])
    decoded = np.asarray(inpainting.generate(PROMPT, **given, output=output, composite=False).images[0])
    assert np.array_equal(pasted[~hole], source[~hole])
    assert np.array_equal(pasted[hole], decoded[hole])
    assert not np.array_equal(decoded[~hole], source[~hole])


def test_pixels_in_the_hole_do_not_matter(inpainting: ebca.Session) -> None:
    image, hole = np.array(sample_image()), np.asarray(mask_image()) > 0
    image[hole] = 255 - image[hole]
    assert np.array_equal(filled(inpainting, image=image), filled(inpainting))
    image[~hole] = 255 - image[~hole]
    assert relative_l2(filled(inpainting, image=image), filled(inpainting)) > 1e-3


def test_parameters_of_inpainting(inpainting: ebca.Session) -> None:
    result = inpainting.generate(PROMPT, image=sample_image(), mask=mask_image(), steps=2, seed=1, output="latents")
    expected = {"task": "inpainting", "scheduler": "pndm", "steps": 2}
    assert {key: result.parameters[key] for key in expected} == expected
    assert not {"strength", "repaint"} & result.parameters.keys()
    json.dumps(result.parameters)


# --- resizing


def test_images_and_masks_are_resized_alike(inpainting: ebca.Session) -> None:
    image, mask = sample_image(0, (128, 128)), mask_image((32, 16, 100, 84), (128, 128))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = filled(inpainting, image=image, mask=mask, steps=1)
    small = image.resize((64, 64), Image.Resampling.BICUBIC), mask.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(made, filled(inpainting, image=small[0], mask=small[1], steps=1))


def test_the_warning_about_a_stretched_mask_points_at_the_caller(inpainting: ebca.Session) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inpainting.generate(
            PROMPT, image=sample_image(), mask=mask_image((8, 4, 25, 21), (32, 32)), steps=1, seed=1, output="latents"
        )
    (warning,) = caught
    assert str(warning.message) == "the mask has 32 x 32 pixels, the image 64 x 64; the mask is stretched to fit"
    assert warning.category is UserWarning
    assert warning.filename == __file__


# --- errors


TOO_SMALL = mask_image((1, 1, 8, 8))


@pytest.mark.parametrize(
    ("kwargs", "error", "named"),
    [
        ({"mask": None}, ebca.EngineError, "takes 9 channels (an inpainting model); give image and mask"),
        ({"mask": None, "image": None}, ebca.EngineError, "takes 9 channels (an inpainting model)"),
        ({"mask": None, "strength": 0.5}, ebca.EngineError, "takes 9 channels (an inpainting model)"),
        ({"strength": 0.01}, ebca.ParameterError, "leaves no step to run"),
        ({"strength": 1.5}, ebca.ParameterError, "strength is 1.5"),
        ({"image_guidance_scale": 1.5}, ebca.ParameterError, "this model is not InstructPix2Pix"),
        (
            {"repaint": ebca.RePaint()},
            ebca.ParameterError,
            "repaint was given, but this model was trained for inpainting",
        ),
        ({"mask": TOO_SMALL}, ebca.ParameterError, "the white part of the mask is too small"),
    ],
)
def test_an_inpainting_model_refuses_other_tasks(
    inpainting: ebca.Session, kwargs: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as caught:
        filled(inpainting, **kwargs)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert np.isfinite(filled(inpainting, steps=1)).all()
