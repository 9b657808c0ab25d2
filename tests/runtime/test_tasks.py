"""Image to image: equality with diffusers' pipeline; several tasks in one session, and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import mask_image, runner, sample_image, tiny_pipeline  # noqa: E402
from helpers.tiny import changed_copy  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402

# Both loops run in float32 on different libraries. One evaluation differs by up to 3e-6, and five guided steps add up
# such errors. A wrong timestep, noise level, draw or mask gives 1e-2 or more.
LIMIT = 2e-5
# The same sums in another order, because a matrix product has more rows.
SAME = 1e-5

PROMPT = "a lion with a crown"
OTHER = "a red car in the snow"
ONE_STEP = ("ddim", "euler")
FORWARD = ("pndm", "ddim", "euler", "dpmpp_2m", "unipc")

Pipeline = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def image_to_image(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from diffusers import StableDiffusionImg2ImgPipeline

    return runner(tiny_pipeline(StableDiffusionImg2ImgPipeline, tmp_path_factory.mktemp("img2img")))


def drawn(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    """Image to image."""
    given: dict[str, Any] = {"image": sample_image(), "steps": 5, "seed": 1, "output": "latents"} | kwargs
    return session.generate(prompt, **given).latents


def filled(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    """Inpainting."""
    return drawn(session, prompt, **{"mask": mask_image()} | kwargs)


# --- image to image


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("scheduler", ONE_STEP)
def test_image_to_image_equals_the_diffusers_pipeline(
    session: ebca.Session, image_to_image: Pipeline, scheduler: str, strength: float
) -> None:
    made = drawn(session, scheduler=scheduler, strength=strength, negative_prompt="blurry")
    expected = image_to_image(
        PROMPT, image=sample_image(), scheduler=scheduler, strength=strength, negative_prompt="blurry"
    )
    assert relative_l2(made, expected) <= LIMIT


@pytest.mark.parametrize("scheduler", sorted(set(FORWARD) - set(ONE_STEP)))
def test_multistep_schedulers_support_only_strength_one(
    session: ebca.Session, image_to_image: Pipeline, scheduler: str
) -> None:
    made = drawn(session, scheduler=scheduler, strength=1)
    assert relative_l2(made, image_to_image(PROMPT, image=sample_image(), scheduler=scheduler, strength=1.0)) <= LIMIT
    with pytest.raises(ebca.ParameterError) as caught:
        drawn(session, scheduler=scheduler, strength=0.8)
    expected = (
        "looks back over several steps and cannot start at an intermediate timestep; use ddim or euler, or strength 1"
    )
    assert str(caught.value) == f"scheduler {scheduler} {expected}"


def test_images_equal_the_diffusers_pipeline(session: ebca.Session, image_to_image: Pipeline) -> None:
    made = session.generate(PROMPT, image=sample_image(), steps=5, seed=1, scheduler="ddim", strength=0.6, output="np")
    expected = image_to_image(PROMPT, image=sample_image(), scheduler="ddim", strength=0.6, output_type="np")
    assert relative_l2(made.images, expected) <= LIMIT


def test_several_images_equal_the_diffusers_pipeline(engine: ebca.Engine, image_to_image: Pipeline) -> None:
    ask: dict[str, Any] = {"image": [sample_image(1), sample_image(2)], "scheduler": "ddim", "strength": 0.6}
    with engine.session(64, 64, batch=2) as session:
        for seed in (3, [3, 2**40 + 5]):
            expected = image_to_image([PROMPT, OTHER], seed=seed, **ask)
            assert relative_l2(drawn(session, [PROMPT, OTHER], seed=seed, **ask), expected) <= LIMIT


def test_a_non_square_image_without_guidance_equals_the_diffusers_pipeline(
    engine: ebca.Engine, image_to_image: Pipeline
) -> None:
    image = sample_image(3, (40, 72))
    with engine.session(40, 72) as session:
        made = drawn(session, image=image, scheduler="euler", strength=0.6, guidance_scale=1)
    expected = image_to_image(PROMPT, image=image, scheduler="euler", strength=0.6, guidance_scale=1)
    assert relative_l2(made, expected) <= LIMIT


def test_the_default_is_ddim_with_strength_08(session: ebca.Session) -> None:
    result = session.generate(PROMPT, image=sample_image(), steps=5, seed=1, output="latents")
    expected = {"task": "image-to-image", "strength": 0.8, "scheduler": "ddim", "steps": 5}
    assert {key: result.parameters[key] for key in expected} == expected
    assert len(result.timesteps) == 4
    assert np.array_equal(result.latents, drawn(session, scheduler="ddim", strength=0.8))
    json.dumps(result.parameters)


def test_schedules_apply_to_the_steps_that_are_run(session: ebca.Session) -> None:
    half = ebca.Schedule.reverse_step(0.3, 0.5)
    listed = drawn(session, steps=10, strength=0.4, gamma_norm=[0.3, 0.3, 0, 0])
    assert np.array_equal(drawn(session, steps=10, strength=0.4, gamma_norm=half), listed)
    with pytest.raises(ebca.ParameterError, match="gamma_norm has 10 values, but ddim with 4 steps makes 4"):
        drawn(session, steps=10, strength=0.4, gamma_norm=[0.3] * 10)


def test_given_latents_replace_the_noise(session: ebca.Session) -> None:
    """As in diffusers, the stream first gives the sample of the image's latents, then the noise."""
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(1)).numpy()[1:]
    assert relative_l2(drawn(session, latents=noise), drawn(session)) <= SAME
    # The seed is still used for the image's latents, so a random seed is reported.
    ask: dict[str, Any] = {"image": sample_image(), "latents": noise, "steps": 5, "output": "latents"}
    first = session.generate(PROMPT, **ask)
    again = session.generate(PROMPT, **ask, seed=first.parameters["seed"])
    assert np.array_equal(again.latents, first.latents)


def test_a_small_strength_stays_close_to_the_image(session: ebca.Session) -> None:
    vae_only = session.engine.encode_image(np.asarray(sample_image(), np.float32)[None] / 255)[0]
    errors = [relative_l2(drawn(session, steps=50, strength=s, guidance_scale=1), vae_only) for s in (0.02, 0.3, 1.0)]
    assert errors[0] < errors[1] < errors[2]


def test_images_with_seeds_equal_single_runs(engine: ebca.Engine, session: ebca.Session) -> None:
    prompts, seeds, images = [PROMPT, OTHER], [5, 6], [sample_image(1), sample_image(2)]
    ask: dict[str, Any] = {"gamma_attn": 0.03, "gamma_norm": 0.2, "edits": [ebca.Edit("oil painting", alpha=0.5)]}
    with engine.session(64, 64, batch=2) as batch:
        together = drawn(batch, prompts, image=images, seed=seeds, **ask)
        one_for_all = drawn(batch, PROMPT, image=images[0], seed=seeds, **ask)
    for i in range(2):
        assert relative_l2(together[i], drawn(session, prompts[i], image=images[i], seed=seeds[i], **ask)[0]) <= SAME
        assert relative_l2(one_for_all[i], drawn(session, image=images[0], seed=seeds[i], **ask)[0]) <= SAME


# --- several tasks


def test_a_session_runs_one_task_after_another(engine: ebca.Engine, session: ebca.Session) -> None:
    """No mask, channel or context of one call affects the next."""

    def text(session: ebca.Session) -> np.ndarray:
        return session.generate(PROMPT, steps=2, seed=1, gamma_attn=0.05, output="latents").latents

    with engine.session(64, 64) as fresh:
        expected = text(fresh)
    session.generate(
        PROMPT, image=sample_image(), mask=mask_image(), steps=2, seed=1, gamma_attn=0.05, output="latents",
        edits=[ebca.Edit("snow")],
    )  # fmt: skip
    drawn(session, gamma_attn=0.05)
    filled(session, steps=2, gamma_attn=0.05)
    assert np.array_equal(text(session), expected)


# --- errors


TOO_SMALL = mask_image((1, 1, 8, 8))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"image": None, "mask": mask_image()}, "a mask was given without an image; give the image whose masked"),
        (
            {"image": None, "strength": 0.5},
            "strength was given without image; strength says how far image to image departs",
        ),
        ({"mask": mask_image(), "strength": 0.5}, "strength and mask do not go together; RePaint regenerates"),
        ({"strength": 0}, "strength is 0; give a number above 0 (keep the image) and up to 1 (regenerate all"),
        ({"strength": 1.01}, "strength is 1.01; give a number above 0"),
        ({"strength": -0.5}, "strength is -0.5; give a number above 0"),
        ({"strength": float("nan")}, "strength is nan; give a finite number"),
        ({"strength": "much"}, "strength is much; give a finite number"),
        ({"strength": 0.1}, "strength 0.1 of 5 steps leaves no step to run; raise either"),
        ({"steps": "5"}, "steps is '5'; give a whole number"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
        ({"steps": 73}, "ddim with 73 steps is not in this engine"),
        ({"mask": np.zeros((64, 64))}, "the mask is empty: no pixel is white, so nothing would be regenerated"),
        (
            {"mask": TOO_SMALL},
            "the white part of the mask is too small: it covers the top left pixel of no 8 x 8 block",
        ),
        ({"mask": np.ones((1, 1, 64, 64))}, "mask is an array of shape [1, 64, 64]; give pixels [height, width]"),
        ({"mask": [mask_image()] * 2}, "2 masks were given for a batch of 1; give one, or one each"),
        ({"image": [sample_image()] * 2}, "2 images were given for a batch of 1; give one, or one each"),
        ({"image": []}, "image is an empty list"),
        ({"image": "missing.png"}, "image 'missing.png' does not exist"),
        ({"image": __file__}, "test_tasks.py' cannot be read as an image"),
        ({"image": np.zeros((3, 64, 64))}, "image is an array of shape [3, 64, 64]; give pixels [height, width, 3]"),
        (
            {"image": np.full((64, 64, 3), 200.0)},
            "image is a float array with values outside [0, 1]; scale it to [0, 1], for example by dividing by 255",
        ),
        ({"image": 7}, "image is of type int"),
        ({"mask": "missing.png"}, "mask 'missing.png' does not exist"),
        ({"latents": np.zeros((1, 4, 16, 16))}, "latents have shape [1, 4, 16, 16], this session needs [1, 4, 8, 8]"),
        ({"gamma_attn": [0.1] * 5}, "gamma_attn has 5 values, but ddim with 4 steps makes 4 evaluations"),
    ],
)
def test_refusals_leave_the_session_usable(
    session: ebca.Session, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, Any], named: str
) -> None:
    def no_work(*args: object, **more: object) -> None:
        raise AssertionError("a component was run")

    with monkeypatch.context() as patched, pytest.raises(ebca.ParameterError) as caught:
        patched.setattr(ebca.Engine, "encode", no_work)
        patched.setattr(ebca.Engine, "encode_image", no_work)
        drawn(session, **kwargs)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert np.isfinite(drawn(session, steps=1, strength=1)).all()


def test_a_unet_only_directory_cannot_encode_an_image(tiny_unet_dir: Path) -> None:
    embeds = np.zeros((1, 77, 32), np.float32)
    with ebca.load(tiny_unet_dir, backend="onnxruntime") as engine, engine.session(64, 64) as session:
        for mask in (None, mask_image()):
            with pytest.raises(ebca.EngineError, match="no VAE to encode an image with; export a whole checkpoint"):
                session.generate(
                    prompt_embeds=embeds, guidance_scale=1, image=sample_image(), mask=mask, output="latents"
                )
        made = session.generate(prompt_embeds=embeds, guidance_scale=1, steps=1, seed=1, output="latents")
    assert np.isfinite(made.latents).all()


def test_a_unet_with_other_channels_is_refused(tiny_unet_dir: Path, tmp_path: Path) -> None:
    def widen(data: dict[str, Any]) -> None:
        data["unet"]["in_channels"] = 5
        for tensors in (data["unet"]["tensors"], *(one["inputs"] for one in data["components"].values())):
            if "sample" in tensors:
                tensors["sample"]["shape"][1] = 5

    copy = changed_copy(tiny_unet_dir, tmp_path / "engine", widen)
    embeds = np.zeros((1, 77, 32), np.float32)
    with (
        ebca.load(copy, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(ebca.EngineError, match=r"takes 5 channels and gives 4; .* take 4, for InstructPix2Pix 8 or"),
    ):
        session.generate(prompt_embeds=embeds, guidance_scale=1, steps=1, output="latents")


def test_repaint_and_regularize_need_a_model_that_predicts_noise(tiny_engine_dir: Path, tmp_path: Path) -> None:
    copy = changed_copy(
        tiny_engine_dir,
        tmp_path / "engine",
        lambda data: data["schedulers"]["config"].update(prediction_type="v_prediction"),
    )
    with ebca.load(copy, backend="onnxruntime") as engine, engine.session(64, 64) as session:
        with pytest.raises(ebca.ParameterError, match="RePaint needs a model that predicts noise"):
            filled(session)
        with pytest.raises(ebca.ParameterError, match="regularize needs a model that predicts noise"):
            session.invert(randn((1, 4, 8, 8), 1), PROMPT, steps=2, regularize=True)
        assert np.isfinite(session.invert(randn((1, 4, 8, 8), 1), PROMPT, steps=2).latents).all()


def test_a_corrupted_noise_level_file_is_detected(tiny_engine_dir: Path, tmp_path: Path) -> None:
    folder = changed_copy(tiny_engine_dir, tmp_path / "engine", lambda data: None)
    file = folder / "schedulers" / "alphas_cumprod.f64"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with (
        ebca.load(folder, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(ebca.EngineError, match=r"alphas_cumprod.f64' is corrupted"),
    ):
        drawn(session)
