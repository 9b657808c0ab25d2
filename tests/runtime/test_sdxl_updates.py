"""Stable Diffusion XL with updates and editing prompts, against a loop in float64; its other tasks; and a GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline  # noqa: E402
from helpers.driver import host_engine  # noqa: E402
from helpers.pipelines import mask_image, sample_image, tiny_xl_pipeline  # noqa: E402
from helpers.reference_unet import Editing, Image, ReferenceUNet  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny_xl import TINY_XL  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402
from ebca.runtime.sampling.table_stepper import TableStepper  # noqa: E402
from ebca.runtime.sampling.tables import INVERSE, load_table  # noqa: E402

# Float32 against float64 over five guided steps; a wrong half of a context, or a wrong layer, gives 1e-3 or more.
LIMIT = 2e-5
# The same sums in another order, because a matrix product has more rows.
SAME = 1e-5

PROMPT = "a lion with a crown"
EDIT = "oil painting of a dog"
STEPS = 5
GUIDANCE = 5.0
GAMMAS = {"gamma_attn": 0.02, "gamma_norm": 0.1}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_xl_pipeline(StableDiffusionXLPipeline, tmp_path_factory.mktemp("xl"))


def reference_loop(
    unet: Any, main: Any, edit: Any, added: dict[str, Any], editing: Editing, upweights: list[tuple[int, float]]
) -> Iterator[tuple[np.ndarray, Image]]:
    """The Euler scheduler in float64 with the float64 UNet for one image. Yields latents and contexts after every step.

    Args:
        main: [2,T,D], unconditional row first.
        edit: [1,T,D], of the editing prompt.
        added: text_embeds [2,P] and time_ids [2,6].
        editing, upweights: see `ReferenceUNet`.
    """
    scheduler = EulerDiscreteScheduler.from_config(dict(TINY_XL.scheduler))
    scheduler.set_timesteps(STEPS)
    first = torch.cat([main[:1], edit])
    image = Image(main, first)
    latents = torch.from_numpy(randn((1, 4, 16, 16), 1)).double() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        image = Image(main, image.edits)
        evaluation = ReferenceUNet(unet, **GAMMAS, editings=[editing], upweights=upweights)
        scaled = scheduler.scale_model_input(latents, t)
        noise = evaluation(torch.cat([scaled] * 2).numpy(), float(t), [image], added=added)
        guided = torch.from_numpy(noise[:1] + GUIDANCE * (noise[1:] - noise[:1]))
        latents = scheduler.step(guided, t, latents).prev_sample
        yield latents.numpy(), image


@pytest.mark.parametrize("negative", ["", "snow"])
def test_updates_and_edits_equal_a_loop_in_float64(xl_session: ebca.Session, pipeline: Any, negative: str) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    xl_session.generate(
        PROMPT,
        negative_prompt=negative,
        prompt_2="a red car",
        original_size=(64, 96),
        edits=[ebca.Edit(EDIT, alpha=0.6, gamma_attn=0.03, gamma_norm=0.05)],
        token_weights={"crown": 2.0},
        guidance_scale=GUIDANCE,
        steps=STEPS,
        seed=1,
        output="latents",
        on_step=lambda info: seen.append((info.latents.copy(), info.contexts.copy())),
        **GAMMAS,
    )
    asked = {"prompt_2": "a red car", "negative_prompt": negative or None}
    embeds, negative_embeds, pooled, negative_pooled = pipeline.encode_prompt(PROMPT, **asked)
    edit, *_ = pipeline.encode_prompt(EDIT, do_classifier_free_guidance=False)
    added = {
        "text_embeds": torch.cat([negative_pooled, pooled]).double(),
        "time_ids": torch.tensor([[64, 96, 0, 0, 128, 128]] * 2).double(),
    }
    main = torch.cat([negative_embeds, embeds]).double()
    unet = TINY_XL.build().unet.double()
    crown = xl_session.engine.tokenizer.find_words(PROMPT, ["crown"])["crown"]
    editing = Editing(0.6, 1, 0.03, 0.05)
    expected = reference_loop(unet, main, edit.double(), added, editing, [(token, 2.0) for token in crown])
    for (latents, contexts), (after, image) in zip(seen, expected, strict=True):
        assert relative_l2(latents, after) <= LIMIT
        assert relative_l2(contexts[:, 0], image.main.numpy()) <= LIMIT
        assert image.edits is not None
        assert relative_l2(contexts[1, 1:], image.edits[1:].numpy()) <= LIMIT
        assert relative_l2(contexts[0, 1], image.edits[0].numpy()) <= LIMIT


def test_repaint_keeps_what_is_outside_of_the_hole(xl_session: ebca.Session) -> None:
    image, mask = sample_image(size=(128, 128)), mask_image((40, 40, 90, 90), (128, 128))
    made = xl_session.generate(PROMPT, image=image, mask=mask, steps=5, seed=1, output="np", **GAMMAS)
    assert made.parameters["task"] == "repaint"
    same = np.isclose(made.images[0], np.asarray(image, np.float32) / 255).all(-1)
    outside = np.asarray(mask) == 0
    assert same[outside].all() and not same[~outside].any()
    # The pooled embedding matters: another second prompt changes it and half of the context.
    other = xl_session.generate(PROMPT, prompt_2="snow", image=image, mask=mask, steps=5, seed=1, output="np", **GAMMAS)
    assert np.abs(made.images - other.images)[0][~outside].mean() > 1e-3


def test_inversion_has_the_prompt_and_the_sizes(xl_session: ebca.Session, pipeline: Any) -> None:
    """Evaluation by evaluation, with embeddings of diffusers."""
    clean = randn((1, 4, 16, 16), 3)
    found = xl_session.invert(clean, PROMPT, steps=4, prompt_2="a dog", original_size=(64, 90)).latents
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPT, prompt_2="a dog", do_classifier_free_guidance=False)
    added = {"text_embeds": pooled.numpy(), "time_ids": np.array([[64, 90, 0, 0, 128, 128]])}
    engine = xl_session.engine
    table = load_table(engine.directory.path, engine.manifest.schedulers, INVERSE, 4)
    stepper, latents, denoise = TableStepper(table, clean.shape), clean, ebca.Denoiser(engine)
    stepper.start(clean)
    for index in range(stepper.total):
        evaluation = stepper.evaluation(index)
        noise = denoise(evaluation.model_input, evaluation.timestep, embeds.numpy()[:, None], **added).noise
        latents = stepper.step(index, noise)
    assert relative_l2(found, latents) <= LIMIT
    plain = xl_session.invert(clean, PROMPT, steps=4).latents
    assert relative_l2(plain, latents) > 1e-2


def test_telemetry_and_subjects(xl_session: ebca.Session) -> None:
    unet = xl_session.engine.manifest.unet
    assert unet.subject_layers is not None
    made = xl_session.generate(PROMPT, steps=2, seed=1, energies=True, attention_maps=True, output="latents", **GAMMAS)
    assert made.energies is not None and made.energies.shape == (2, len(unet.layers), 2, 2, 1)
    assert made.attention_maps is not None and np.allclose(made.attention_maps.sum(1), 1, atol=1e-5)
    asked: dict[str, Any] = {"steps": 2, "seed": 1, "output": "latents"}
    kept = xl_session.generate("a cat and a dog", subjects=["cat", "dog"], **asked)
    assert kept.parameters["subjects"] == ["cat", "dog"]
    assert relative_l2(kept.latents, xl_session.generate("a cat and a dog", **asked).latents) > 1e-4


@pytest.mark.parametrize("side", [100, 130])
def test_sizes_that_are_no_multiples_of_8_are_refused(xl_engine: ebca.Engine, side: int) -> None:
    with pytest.raises(ebca.ParameterError, match=f"width is {side}; give a multiple of 8"):
        xl_engine.session(128, side)


def test_a_gpu_makes_the_same_images(xl_session: ebca.Session, tiny_xl_dir: Path) -> None:
    """The device's sampler, with a driver on the host: one launch, one per step, and other conditions afterwards."""
    asked: dict[str, Any] = {"steps": 3, "seed": 1, "output": "latents", **GAMMAS}
    ways = [{}, {"negative_prompt": "snow", "original_size": (64, 64)}, {"edits": [ebca.Edit(EDIT, gamma_attn=0.01)]}]
    with host_engine(tiny_xl_dir)[0] as engine, engine.session() as session:
        for more in ways:
            expected = xl_session.generate(PROMPT, **asked, **more).latents
            assert relative_l2(session.generate(PROMPT, **asked, **more).latents, expected) <= SAME
            assert (
                relative_l2(session.generate(PROMPT, **asked, **more, on_step=lambda _: None).latents, expected) <= SAME
            )
        found = session.invert(randn((1, 4, 16, 16), 3), PROMPT, steps=3).latents
    assert relative_l2(found, xl_session.invert(randn((1, 4, 16, 16), 3), PROMPT, steps=3).latents) <= SAME
