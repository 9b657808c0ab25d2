"""The library against the Python session on the same ONNX Runtime, task by task.

Every bit is the same, from latents that are given and from seeds: both run the same graphs, add in the same order, and
round what noise is made of to the nearest float32.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import derived, manifests

import ebca
from ebca.runtime import native
from ebca.runtime.native import view

PROMPT = "a red circle and a blue square"
LIMIT = 1e-5  # of regularised inversion, whose sums over all of the noise numpy adds in another order
STEPS = 6

Sessions = tuple[native.Session, ebca.Session]


@pytest.fixture(scope="module")
def sessions(shapes: native.Engine, python_shapes: ebca.Engine) -> Iterator[Sessions]:
    session = shapes.session()
    with python_shapes.session() as python:
        yield session, python
    session.close()


def noise(session: ebca.Session, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(session._latent_shape).astype(np.float32)


def patches(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coarse patches of colour, for resizing and encoding."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    tiled = np.kron(small, np.ones((-(-height // 5), -(-width // 7), 1), np.uint8))
    return np.ascontiguousarray(tiled[:height, :width])


def hole(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 255
    return mask


def region(height: int, width: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 5 :, left:right] = 255
    return mask


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def compare(sessions: Sessions, prompt: Any = PROMPT, **given: Any) -> tuple[native.Result, ebca.Result]:
    """Both make the same call; returns both results, which are equal."""
    session, python = sessions
    given = {"steps": STEPS, **given}
    made = session.generate(prompt, **given)
    expected = python.generate(prompt, **{"output": "np", **given})
    assert made.timesteps == list(expected.timesteps)
    assert made.task == expected.parameters["task"]
    assert made.scheduler == expected.parameters["scheduler"]
    assert np.array_equal(made.latents, expected.latents)
    if expected.images is not None:
        assert made.pixels is not None
        assert np.array_equal(made.pixels, np.rint(expected.images * 255))
    return made, expected


EXACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "gammas": {"gamma_attn": 0.01, "gamma_norm": 0.02},
    "values": {"gamma_attn": [0.01, 0.0, 0.02, 0.0, 0.0, 0.01, 0.0], "gamma_norm": ebca.Schedule.linear(0.02, -0.003)},
    "token weights": {
        "gamma_attn": ebca.Schedule.reverse_step(0.01, 0.5),
        "token_weights": {"circle": 2.0, 3: 0.5},
        "norm_factor": 0.5,
    },
    "no guidance": {"guidance_scale": 1.0, "gamma_norm": ebca.Schedule.exponential(0.02, 0.5)},
    "negative prompt": {"negative_prompt": "a green triangle", "guidance_scale": 3.0},
    "weights": {
        "prompt": "a (red:1.3) circle, [a (blue)] \\(square\\) BREAK a (green:0.5) star",
        "negative_prompt": "((a triangle))",
        "token_weights": {"red circle": 2.0, "green star": 0.5, "(": 3.0},
        "gamma_attn": 0.01,
    },
    "long": {
        "prompt": "a red circle, " * 30 + "a (blue square:1.2)",
        "edits": [ebca.Edit("a green triangle BREAK a star", gamma_attn=0.01)],
        "token_weights": {"blue square": 2.0, 1: 0.5},
        "gamma_norm": 0.01,
    },
    "not weighted, not long": {
        "prompt": "a (red:1.3) circle, " * 30,
        "prompt_weighting": False,
        "long_prompts": False,
    },
    "clip skip": {"clip_skip": 1, "negative_prompt": "a star", "edits": [ebca.Edit("a green triangle")]},
    "ddim": {"scheduler": "ddim"},
    "euler": {"scheduler": "euler", "gamma_attn": 0.01},
    "dpmpp_2m": {"scheduler": "DPM++ 2M", "gamma_attn": 0.01},
    "unipc": {"scheduler": "unipc", "gamma_norm": 0.01},
    "edits": {
        "gamma_norm": 0.001,
        "edits": [
            ebca.Edit("a green triangle", 1, ebca.Schedule.step(0.7, 0.2), 0.001, 0.002),
            ebca.Edit("a circle", 0, 0.2, gamma_norm=ebca.Schedule.constant(0.001)),
        ],
    },
    "reset edits": {"edits": [ebca.Edit("a green triangle", alpha=0.5, gamma_attn=0.01)], "reset_edits": True},
    "latents only": {"output": "latents"},
    "two subjects": {"subjects": ["red circle", "blue square"]},
    "three subjects": {"subjects": ["circle", "blue", "Square"], "subject_window": 0.3},
    "subjects and gammas": {"subjects": ["red circle", "blue square"], "gamma_attn": 0.01, "gamma_norm": 0.02},
    "subjects and edits": {
        "subjects": ["red circle", "blue square"],
        "gamma_norm": 0.001,
        "edits": [ebca.Edit("a green triangle", 1, 0.7, 0.001, 0.002)],
    },
    "subjects without guidance": {"subjects": ["red circle", "blue square"], "guidance_scale": 1.0},
    "subjects in schedules": {
        "subjects": ["red circle", "blue square"],
        "subject_exclusion": ebca.Schedule.reverse_step(3.0, 0.5),
        "subject_balance": [0.0, 1.0, 2.0, 0.5, 0.0, 1000.0, 1.0],
        "gamma_attn": ebca.Schedule.step(0.01, 0.5),
    },
    "a region": {"regions": {"red circle": region(64, 64, 0, 24)}},
    "regions of both": {
        "regions": {"red circle": region(64, 64, 0, 24), "blue square": region(100, 101, 60, 100)},
        "subjects": ["blue square"],
        "subject_exclusion": 5.0,
    },
    "a region and a subject": {"subjects": ["blue square", "circle"], "regions": {"Circle": region(37, 37, 9, 20)}},
}


@pytest.mark.parametrize("name", [name for name in EXACT if "subjects" in name or "region" in name])
def test_subjects_change_what_is_made(sessions: Sessions, name: str) -> None:
    off = {name: value for name, value in EXACT[name].items() if name not in ("subjects", "regions")}
    made, plain = (
        sessions[0].generate(PROMPT, latents=noise(sessions[1]), steps=STEPS, output="latents", **given)
        for given in (EXACT[name], off)
    )
    assert relative(made.latents, plain.latents) > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_text_to_image_and_editing_equal_python_bit_by_bit(sessions: Sessions, name: str) -> None:
    made, _ = compare(sessions, latents=noise(sessions[1]), **EXACT[name])
    assert made.seeds == []


def test_a_seed_that_is_not_used_is_not_reported(sessions: Sessions) -> None:
    made, expected = compare(sessions, seed=7, latents=noise(sessions[1]))
    assert made.seeds == [] and expected.parameters["seed"] is None


def test_seeds_give_the_same_images(sessions: Sessions) -> None:
    made, expected = compare(sessions, seed=7, gamma_attn=0.01)
    assert made.seeds == [7]
    other, _ = compare(sessions, seed=-8)
    assert relative(other.latents, made.latents) > 0.1
    assert set(made.seconds) == {"text_encoder", "vae_encoder", "open", "scheduler", "vae"}
    assert len(made.unet_seconds) == len(expected.timings["unet_steps"])


def test_images_without_a_seed_differ(sessions: Sessions) -> None:
    first, second = (sessions[0].generate(PROMPT, steps=1, output="latents") for _ in range(2))
    assert first.seeds != second.seeds
    again = sessions[0].generate(PROMPT, steps=1, output="latents", seed=first.seeds[0])
    assert np.array_equal(again.latents, first.latents)


def test_image_to_image(sessions: Sessions) -> None:
    compare(sessions, image=patches(64, 64), strength=0.5, seed=1, gamma_attn=0.01)
    compare(sessions, image=patches(77, 201), strength=1.0, seed=1)
    compare(sessions, image=patches(64, 64), scheduler="euler", seed=2, steps=5)


@pytest.mark.filterwarnings("ignore:the image has transparent pixels")
def test_transparent_pixels(sessions: Sessions) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (77, 201), np.uint8)
    image = np.dstack([patches(77, 201), alpha])
    compare(sessions, image=image, strength=0.5, seed=1)
    session, python = sessions
    made = session.invert(image, PROMPT, steps=STEPS)
    assert np.array_equal(made.latents, python.invert(image, PROMPT, steps=STEPS).latents)


@pytest.mark.filterwarnings("ignore:the mask has several colours and transparency", "ignore:the image has transparent")
def test_every_form_of_a_mask(sessions: Sessions) -> None:
    white = hole(64, 64)
    clear = np.dstack([np.full((64, 64, 3), 255, np.uint8), 255 - white])
    both = np.dstack([white, white, white, 255 - white // 2])
    given = {"image": patches(64, 64), "seed": 3, "steps": 4}
    images = [compare(sessions, mask=mask, **given)[0].pixels for mask in (white, clear, white // 255, both)]
    assert all(np.array_equal(images[0], image) for image in images)
    # Of another size, with soft edges.
    soft = np.dstack([np.zeros((50, 90, 3), np.uint8), np.tile(np.linspace(0, 255, 90).astype(np.uint8), (50, 1))])
    with pytest.warns(UserWarning, match="stretched"):
        compare(sessions, mask=soft, **given)


def test_repaint(sessions: Sessions) -> None:
    settings = ebca.RePaint(jump_length=2, jump_count=2, eta=0.5)
    given = {"image": patches(64, 64), "mask": hole(64, 64), "repaint": settings, "seed": 3}
    compare(sessions, gamma_attn=0.01, **given)
    compare(sessions, gamma_norm=0.01, **given, composite=False)
    known = ebca.RePaint(jump_length=3, jump_count=1, update_known=True)
    compare(sessions, **{**given, "repaint": known}, gamma_attn=0.01)


def test_images_and_masks_are_resized_to_the_byte(sessions: Sessions) -> None:
    """Outside the mask the result is the image itself, resized to the session's size."""
    height, width = sessions[1].height, sessions[1].width
    for size in ((131, 200), (50, 61), (400, 128), (200, 40), (300, 400)):
        with pytest.warns(UserWarning, match="stretched"):
            made, expected = compare(
                sessions,
                image=patches(*size),
                mask=hole(90, 70),
                seed=3,
                steps=4,
                repaint=ebca.RePaint(jump_count=1),
            )
        assert made.pixels is not None
        outside = np.ones((height, width), bool)
        outside[int(0.2 * height) : int(0.55 * height), int(0.28 * width) :] = False
        assert np.array_equal(made.pixels[0][outside], np.rint(expected.images[0] * 255).astype(np.uint8)[outside])


def test_inversion_and_back(sessions: Sessions) -> None:
    session, python = sessions
    latents = 0.5 * noise(python, 5)
    found, expected = session.invert(latents=latents, prompt=PROMPT, steps=8), python.invert(latents, PROMPT, steps=8)
    assert found.task == "inversion" and found.pixels is None
    assert np.array_equal(found.latents, expected.latents)
    image = patches(64, 64)
    found, expected = session.invert(image, PROMPT, steps=8), python.invert(image, PROMPT, steps=8)
    assert np.array_equal(found.latents, expected.latents)
    edits = [ebca.Edit("a green triangle", 1, ebca.Schedule.step(0.75, 0.5), 6e-4, 6e-4)]
    compare(sessions, latents=found.latents, scheduler="ddim", steps=8, edits=edits, negative_prompt=PROMPT)


def test_regularized_inversion(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    """The shifts are those of numpy's generator; sums are made in another order, in float64."""
    session = shapes.session(64, 96, 2)
    with python_shapes.session(64, 96, 2) as python:
        latents = 0.5 * noise(python, 5)
        for settings in (ebca.NoiseRegularization(), ebca.NoiseRegularization(2, 3, 10.0, 5.0, seed=2**32 - 1)):
            found = session.invert(latents=latents, prompt=PROMPT, steps=6, regularize=settings)
            expected = python.invert(latents, PROMPT, steps=6, regularize=settings)
            assert relative(found.latents, expected.latents) < LIMIT
            plain = session.invert(latents=latents, prompt=PROMPT, steps=6)
            assert relative(found.latents, plain.latents) > 1e-3
    session.close()


def test_several_images_of_another_size(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    session = shapes.session(64, 96, 2)
    with python_shapes.session(64, 96, 2) as python:
        both = session, python
        prompts = ["a red circle", "a blue square"]
        edits = [ebca.Edit(["a green triangle", "a circle"], gamma_norm=0.01)]
        compare(both, prompts, latents=noise(python), gamma_attn=0.01, edits=edits)
        compare(both, prompts, seed=[4, 5], scheduler="ddim", negative_prompt=["", "a red square"])
        masks = [hole(64, 96), hole(64, 96)[::-1].copy()]
        images = [patches(64, 96), patches(64, 96, 1)]
        compare(both, seed=4, image=images, mask=masks, gamma_attn=0.01, repaint=ebca.RePaint(2, 2))
    session.close()


def test_embeddings_instead_of_texts(sessions: Sessions) -> None:
    rng = np.random.default_rng(1)
    main, negative, edit = (rng.standard_normal((1, 9, 128)).astype(np.float32) for _ in range(3))
    compare(
        sessions,
        None,
        prompt_embeds=main,
        negative_prompt_embeds=negative,
        edits=[ebca.Edit(prompt_embeds=edit, alpha=0.4, gamma_norm=0.01)],
        latents=noise(sessions[1]),
        token_weights={2: 3.0},
        gamma_attn=0.01,
    )


@pytest.mark.parametrize("scheduler", ["pndm", "euler"])
def test_on_step_gets_what_python_s_gets(sessions: Sessions, scheduler: str) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(info: Any) -> None:
        latents = view(info.latents).copy()
        contexts = view(info.contexts).copy()
        seen.append((info.index, info.total, info.timestep, info.unit_scale, latents, contexts))

    expected: list[tuple[Any, ...]] = []
    start = noise(sessions[1])
    ask: dict[str, Any] = {"steps": 3, "scheduler": scheduler, "latents": start, "gamma_norm": 0.01}
    sessions[0].generate(PROMPT, **ask, on_step=look)
    sessions[1].generate(
        PROMPT,
        **ask,
        on_step=lambda i: expected.append((i.index, i.total, i.timestep, i.scale, i.latents.copy(), i.contexts.copy())),
    )
    assert len(seen) == len(expected) == (4 if scheduler == "pndm" else 3)
    for mine, python in zip(seen, expected, strict=True):
        assert mine[:4] == python[:4]
        assert np.array_equal(mine[4], python[4]) and np.array_equal(mine[5], python[5])


def test_a_nine_channel_model_inpaints(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    folder = derived.nine_channels(shapes_dir, tmp_path / "engine")
    engine = library.open(folder)
    assert engine.info().tasks & 8 and not engine.info().tasks & 1
    session = engine.session()
    with ebca.load(folder, backend="onnxruntime") as opened, opened.session() as python:
        given = {"image": patches(64, 64), "mask": hole(64, 64), "seed": 3, "gamma_attn": 0.01}
        compare((session, python), **given)
        with pytest.raises(ebca.errors.EngineError, match="an inpainting model"):
            session.generate("a cat")
        with pytest.raises(ebca.errors.EngineError, match="an inpainting model"):
            session.invert(patches(64, 64), "a cat")
    session.close()
    engine.close()


def test_a_unet_alone(library: native.Library, shapes_dir: Path, tmp_path: Path) -> None:
    """Weights stored as float16; embeddings and latents instead of texts and images."""
    folder = derived.unet_alone(shapes_dir, tmp_path / "engine")
    engine = library.open(folder)
    session = engine.session(64, 64)
    assert not engine.info().has_vae and not engine.info().has_text_encoder
    with ebca.load(folder, backend="onnxruntime") as opened, opened.session(64, 64) as python:
        assert opened.manifest.precision == "fp16"
        embeds = np.random.default_rng(2).standard_normal((1, 7, 128)).astype(np.float32)
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds[::-1] * 0.5, "latents": noise(python)}
        compare((session, python), None, output="latents", gamma_norm=0.01, **given)
        with pytest.raises(ebca.errors.EngineError, match="no VAE"):
            session.generate(None, **given)
        with pytest.raises(ebca.errors.EngineError, match="UNet only"):
            session.generate("a cat", output="latents")
        with pytest.raises(ebca.errors.ParameterError, match=r"negative_prompt\.embeds"):
            session.generate(None, prompt_embeds=embeds, output="latents")
    session.close()
    engine.close()


@pytest.mark.parametrize("derive", [derived.with_full_unet, derived.with_float16_between, derived.with_channels_last])
def test_the_full_unet_and_other_forms_between_segments(
    library: native.Library, shapes_dir: Path, tmp_path: Path, derive: Callable[[Path, Path], Path]
) -> None:
    """Steps without gammas run the full UNet if the engine has one."""
    pytest.importorskip("onnx")
    folder = derive(shapes_dir, tmp_path / "engine")
    engine = library.open(folder)
    session = engine.session()
    with ebca.load(folder, backend="onnxruntime") as opened, opened.session() as python:
        for given in ({}, {"gamma_attn": ebca.Schedule.reverse_step(0.01, 0.5)}, {"edits": [ebca.Edit("a dog")]}):
            given = {"steps": 3, "output": "latents", "latents": noise(python), **given}
            compare((session, python), **given)
    session.close()
    engine.close()


@pytest.mark.parametrize("name", ["sample", "noise", "layer_00.q", "hidden_99"])
def test_channels_last_of_what_is_no_image_between_segments(
    library: native.Library, shapes_dir: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(shapes_dir, folder)
    named = {"onnxruntime": ["hidden_00_0"], "onnxruntime-cuda": ["hidden_00_0", name]}
    manifests.edit(folder, lambda data: data["unet"].update(channels_last=named))
    with pytest.raises(ebca.errors.EngineError, match=f"'{name}' of channels_last is not an image between segments"):
        library.open(folder)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("EBCA_SLOW_TESTS"), reason="exports for minutes; EBCA_SLOW_TESTS=1 runs it")
def test_graphs_that_compute_in_float16_and_the_full_unet(library: native.Library, tiny_gpu_dir: Path) -> None:
    """On a CPU every result is rounded to float16, as on a GPU; steps without gammas run the full UNet."""
    engine = library.open(tiny_gpu_dir)
    session = engine.session(64, 64)
    with ebca.load(tiny_gpu_dir, backend="onnxruntime") as opened, opened.session(64, 64) as python:
        assert opened.manifest.compute == "fp16" and opened.manifest.unet.full_unet
        for given in ({}, {"gamma_attn": ebca.Schedule.reverse_step(0.01, 0.5)}, {"edits": [ebca.Edit("a dog")]}):
            compare((session, python), "a cat", latents=noise(python), **given)
    session.close()
    engine.close()
