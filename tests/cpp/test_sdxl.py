"""Stable Diffusion XL in the C++ library: the bits of Python on the built-in model of its structure, and refusals.

Both run the same graphs and add in the same order, so every comparison is exact.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ebca
from ebca.errors import ParameterError
from ebca.runtime import native
from ebca.runtime.native import structures

PROMPT = "a red circle and a blue square"
STEPS = 3
WIDTH, POOLED = 80, 40

Sessions = tuple[native.Session, ebca.Session]


@pytest.fixture(scope="module")
def engines(library: native.Library, tiny_xl_dir: Path) -> Iterator[tuple[native.Engine, ebca.Engine]]:
    with library.open(tiny_xl_dir) as engine, ebca.load(tiny_xl_dir, "cpu", "onnxruntime") as python:
        yield engine, python


@pytest.fixture(scope="module")
def sessions(engines: tuple[native.Engine, ebca.Engine]) -> Iterator[Sessions]:
    with engines[0].session() as session, engines[1].session() as python:
        yield session, python


@pytest.fixture(scope="module")
def several(engines: tuple[native.Engine, ebca.Engine]) -> Iterator[Sessions]:
    """For two images at once."""
    with engines[0].session(64, 128, 2) as session, engines[1].session(height=64, width=128, batch=2) as python:
        yield session, python


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def painted(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    return np.ascontiguousarray(np.kron(small, np.ones((height // 8, width // 8, 1), np.uint8)))


def hole(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 255
    return mask


def compare(sessions: Sessions, prompt: Any = PROMPT, **given: Any) -> np.ndarray:
    """Both make the same call; returns the latents, which are equal."""
    session, python = sessions
    given = {"steps": STEPS, "seed": 1, "output": "latents", **given}
    made = session.generate(prompt, **given)
    expected = python.generate(prompt, **given)
    assert made.timesteps == list(expected.timesteps)
    assert (made.task, made.scheduler) == (expected.parameters["task"], expected.parameters["scheduler"])
    assert np.array_equal(made.latents, expected.latents)
    if given["output"] == "np":
        assert made.pixels is not None and expected.images is not None
        assert np.array_equal(made.pixels, np.rint(expected.images * 255))
    return made.latents


EMBEDS = {"prompt_embeds": values(1, 77, WIDTH), "pooled_prompt_embeds": values(1, POOLED, seed=2)}
NEGATIVE = {
    "negative_prompt_embeds": values(1, 77, WIDTH, seed=3),
    "negative_pooled_prompt_embeds": values(1, POOLED, seed=4),
}

# Each differs from "plain" in what it makes.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gammas": {"gamma_attn": 0.01, "gamma_norm": 0.02, "token_weights": {"red circle": 2.0}},
    "no guidance": {"guidance_scale": 1.0},
    "second prompts": {"prompt_2": "a green triangle", "negative_prompt_2": "a star"},
    "a space is a text": {"negative_prompt": " "},
    "a negative prompt": {"negative_prompt": "a star", "negative_prompt_2": ""},
    "weights": {"prompt": "a (red:1.3) circle, [a square] BREAK a (green:0.5) star", "negative_prompt": "((a square))"},
    "weights in one of two": {"prompt": "a (red:1.3) circle", "prompt_2": "a red circle"},
    "weights in both": {"prompt": "a (red:1.3) circle", "prompt_2": "a [red] (circle:1.7)", "gamma_norm": 0.01},
    "long": {"prompt": "a red circle, " * 30 + "a star", "gamma_attn": 0.01, "token_weights": {"star": 3.0}},
    "a longer second prompt": {"prompt_2": "a red circle, " * 30, "negative_prompt": "a star"},
    "a longer first prompt": {"prompt": "a red circle, " * 30, "prompt_2": "a (star:1.2)"},
    "clip skip": {"clip_skip": 1},
    "sizes": {"original_size": (40, 300), "crops_coords_top_left": (7, 0), "target_size": (64, 128)},
    "negative sizes": {
        "original_size": (512, 512),
        "negative_original_size": (32, 40),
        "negative_crops_coords_top_left": (1, 2),
        "negative_target_size": (128, 64),
    },
    "edits": {
        "edits": [ebca.Edit("a green triangle", 1, 0.7, 0.01, 0.02), ebca.Edit("a circle BREAK a star", 0, 0.2)],
        "prompt_2": "a star",
    },
    "embeddings": {"prompt": None, **EMBEDS, **NEGATIVE},
    "embeddings and an empty text": {"prompt": None, **EMBEDS},
    "embeddings of another length": {
        "prompt": None,
        "prompt_embeds": values(1, 30, WIDTH),
        "pooled_prompt_embeds": values(1, POOLED, seed=2),
    },
    "embeddings beside longer texts": {
        "prompt": None,
        "prompt_embeds": values(1, 154, WIDTH),
        "pooled_prompt_embeds": values(1, POOLED),
        "edits": [ebca.Edit("a green triangle", alpha=0.5)],
    },
    "subjects": {"subjects": ["red circle", "blue square"]},
    "a stochastic scheduler": {"scheduler": "euler_ancestral"},
}


def test_every_case_is_python_s(sessions: Sessions) -> None:
    made = {name: compare(sessions, **given) for name, given in CASES.items()}
    names = list(made)
    for i, name in enumerate(names):
        same = [other for other in names[:i] if np.array_equal(made[name], made[other])]
        assert not same, f"'{name}' makes what {same} makes"


def test_images_and_tasks_are_python_s(sessions: Sessions) -> None:
    compare(sessions, output="np", gamma_attn=0.01)
    compare(sessions, image=painted(128, 128), strength=0.7, prompt_2="a star", output="np")
    compare(sessions, image=painted(64, 96), mask=hole(64, 96), repaint=ebca.RePaint(2, 2), original_size=(64, 64))


def test_two_images_have_prompts_of_their_own(several: Sessions) -> None:
    given: dict[str, Any] = {
        "prompt": [PROMPT, "a star"],
        "prompt_2": ["a triangle, " * 30, "a star"],
        # Zeros for the first image alone.
        "negative_prompt": ["", "a square"],
        "target_size": (64, 64),
    }
    together = compare(several, **given, seed=[1, 2])
    spaced = compare(several, **given | {"negative_prompt": [" ", "a square"]}, seed=[1, 2])
    assert not np.array_equal(together[0], spaced[0]) and np.array_equal(together[1], spaced[1])
    compare(several, [PROMPT, "a star"], pooled_prompt_embeds=None, clip_skip=1, output="np")
    compare(several, None, **EMBEDS, gamma_norm=0.02)


def test_an_inversion_is_python_s(sessions: Sessions) -> None:
    session, python = sessions
    found = []
    for more in ({}, {"prompt_2": "a star", "original_size": (300, 300)}, {"clip_skip": 1}):
        made = session.invert(painted(128, 128), PROMPT, steps=STEPS, **more)
        expected = python.invert(painted(128, 128), PROMPT, steps=STEPS, **more)
        assert np.array_equal(made.latents, expected.latents)
        found.append(made.latents)
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    own = {"prompt_embeds": EMBEDS["prompt_embeds"], "pooled_prompt_embeds": EMBEDS["pooled_prompt_embeds"]}
    made = session.invert(latents=values(1, 4, 16, 16), steps=STEPS, **own)
    assert np.array_equal(made.latents, python.invert(values(1, 4, 16, 16), steps=STEPS, **own).latents)


def test_energies_and_attention_maps_are_python_s(sessions: Sessions) -> None:
    session, python = sessions
    given: dict[str, Any] = {"steps": 2, "seed": 1, "output": "latents", "energies": True, "attention_maps": True}
    made, expected = session.generate(PROMPT, **given), python.generate(PROMPT, **given)
    assert made.attention_energies is not None and made.attention_maps is not None
    assert np.array_equal(np.stack([made.attention_energies, made.norm_energies], 2), expected.energies)
    assert np.array_equal(made.attention_maps, expected.attention_maps)


def test_what_encode_prompt_makes_is_what_a_generation_uses(
    engines: tuple[native.Engine, ebca.Engine], sessions: Sessions
) -> None:
    engine = engines[0]
    info = engine.info()
    assert (info.pooled_width, info.context_width, info.guidance_scale) == (POOLED, WIDTH, 5.0)
    embeds, pooled = engine.encode_pooled_prompt(["a (red:1.3) circle", "a star"], "a square", clip_skip=1)
    assert embeds.shape == (2, 77, WIDTH) and pooled.shape == (2, POOLED)
    given = {
        "prompt_embeds": embeds[:1], "pooled_prompt_embeds": pooled[:1],
        "negative_prompt_embeds": embeds[1:], "negative_pooled_prompt_embeds": pooled[1:],
    }  # fmt: skip
    by_text = {"negative_prompt": "a star", "prompt_2": "a square", "negative_prompt_2": "a square", "clip_skip": 1}
    made = [compare(sessions, None, **given), compare(sessions, "a (red:1.3) circle", **by_text)]
    assert np.array_equal(*made)
    assert np.array_equal(engine.encode_prompt("a star"), engine.encode_pooled_prompt("a star", "a star")[0])


def test_larger_images_are_made_in_tiles_as_python_makes_them(engines: tuple[native.Engine, ebca.Engine]) -> None:
    size = {"height": 144, "width": 296}
    with engines[0].session(**size) as session, engines[1].session(**size) as python:
        both = session, python
        given: dict[str, Any] = {"output": "np", "steps": 1, "image": painted(*size.values()), "strength": 1.0}
        tiled, whole = (compare(both, **given, vae_tiling=tiled) for tiled in (True, False))
        assert not np.array_equal(tiled, whole)
        made = session.invert(painted(*size.values()), PROMPT, steps=2, vae_tiling=True)
        expected = python.invert(painted(*size.values()), PROMPT, steps=2, vae_tiling=True)
        assert np.array_equal(made.latents, expected.latents)


def test_an_evaluation_is_python_s(engines: tuple[native.Engine, ebca.Engine], sessions: Sessions) -> None:
    denoiser, session = ebca.Denoiser(engines[1]), sessions[0]
    arguments = values(3, 4, 16, 16), 300.0, values(3, 2, 9, WIDTH, seed=1)
    control = ebca.EnergyControl(0.02, 0.1, weights=[[1.0, 0.5]] * 3, rows_per_image=3)
    made = []
    for seed in (5, 6):
        added = {"text_embeds": values(3, POOLED, seed=seed), "time_ids": np.full((3, 6), 64 * seed, np.float32)}
        made.append(session.denoise(*arguments, control, **added))
        expected = denoiser(*arguments, control, **added)
        assert np.array_equal(made[-1].noise, expected.noise)
        assert np.array_equal(made[-1].contexts, expected.contexts)
    assert not np.array_equal(made[0].noise, made[1].noise)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_2": "a", **EMBEDS}, r"prompt_2 and prompt\.embeds do not go together"),
        ({"prompt_embeds": EMBEDS["prompt_embeds"]}, r"prompt\.embeds needs pooled_prompt_embeds beside it"),
        ({**EMBEDS, "negative_prompt_embeds": values(1, 77, WIDTH)}, "needs negative_pooled_prompt_embeds beside it"),
        ({"prompt": "a", "pooled_prompt_embeds": values(1, POOLED)}, r"is given without prompt\.embeds"),
        ({**EMBEDS, "pooled_prompt_embeds": values(1, 7)}, r"pooled_prompt_embeds has shape \[1, 7\]; give \[1, 40\]"),
        ({**EMBEDS, "pooled_prompt_embeds": values(3, POOLED)}, r"pooled_prompt_embeds has shape \[3, 40\]"),
        ({**EMBEDS, "pooled_prompt_embeds": np.full((1, POOLED), np.nan)}, "pooled_prompt_embeds has values that are"),
        ({"prompt": "a", "prompt_2": ["a", "b"]}, "prompt_2"),
        ({"prompt_2": "a"}, "give either texts or embeds"),
        ({"prompt": "a", "original_size": (-1, 5)}, r"size_conditions\.original is \(-1, 5\); give two whole numbers"),
        ({"prompt": "a", "target_size": (1, 2**25)}, r"size_conditions\.target is \(1, 33554432\)"),
        ({"prompt": "a", "crops_coords_top_left": (0, -7)}, r"size_conditions\.crop is \(0, -7\)"),
        ({"prompt": "a", "negative_original_size": (5, 5)}, "negative_size_conditions needs a target size beside it"),
        ({"prompt": "a", "negative_crops_coords_top_left": (5, 5)}, "needs an original size beside it"),
        ({"prompt": "a", "clip_skip": 2}, "clip_skip is 2; the text encoder has 2 layers: give 0 to 1"),
        ({"prompt": "a", "clip_skip": -1}, "clip_skip is -1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(sessions: Sessions, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as error:
        sessions[0].generate(**given, steps=1, output="latents")
    assert len(str(error.value).splitlines()) == 1


def test_inputs_of_an_evaluation_are_needed_and_checked(sessions: Sessions) -> None:
    arguments = values(1, 4, 16, 16), 1.0, values(1, 1, 77, WIDTH)
    embeds, ids = values(1, POOLED), np.ones((1, 6), np.float32)
    for more, message in (
        ({}, r"text_embeds\.data is NULL"),
        ({"text_embeds": embeds}, r"time_ids\.data is NULL"),
        ({"text_embeds": embeds[:, :3], "time_ids": ids}, r"text_embeds has shape \[1, 3\]; give \[1, 40\]"),
        ({"text_embeds": embeds, "time_ids": ids.repeat(2, 0)}, r"time_ids has shape \[2, 6\]; give \[1, 6\]"),
    ):
        with pytest.raises(ParameterError, match=message):
            sessions[0].denoise(*arguments, **more)


def test_shapes_are_checked_before_anything_is_copied(sessions: Sessions) -> None:
    """The addresses are not readable: a copy would end the process."""
    session = sessions[0]
    lib, out = session.library.lib, ctypes.c_void_p()
    nowhere = structures.Tensor(ctypes.cast(64, ctypes.POINTER(ctypes.c_float)), (ctypes.c_int64 * 4)(1, 2**30), 2, 0)
    text = ctypes.c_char_p(b"a")
    for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        params = session.library.init("generate_params")
        params.prompt.texts, params.prompt.count = ctypes.pointer(text), 1
        setattr(params, name, nowhere)
        assert lib.ebca_session_generate(session.handle, ctypes.byref(params), ctypes.byref(out)) == 1
        assert lib.ebca_session_last_problem(session.handle).decode() == f"{name} has shape [1, 1073741824]"
    params = session.library.init("generate_params")
    params.prompt.texts, params.prompt.count = ctypes.pointer(text), 1
    params.prompt_2.embeds = nowhere
    assert lib.ebca_session_generate(session.handle, ctypes.byref(params), ctypes.byref(out)) == 1
    assert lib.ebca_session_last_problem(session.handle) == b"prompt_2.embeds is given"
    params = session.library.init("generate_params")
    params.prompt.texts, params.prompt.count = ctypes.pointer(text), 1
    params.size_conditions.reserved[1] = 1
    assert lib.ebca_session_generate(session.handle, ctypes.byref(params), ctypes.byref(out)) == 1
    assert lib.ebca_session_last_problem(session.handle).startswith(b"size_conditions")
    inputs = values(1, 4, 16, 16), values(1, 1, 77, WIDTH)
    for name in ("text_embeds", "time_ids"):
        params, arguments = session.library.init("denoise_params"), native.session.Arguments()
        params.sample, params.contexts = (arguments.tensor(one) for one in inputs)
        params.timesteps, params.timestep_count = arguments.pointer(np.ones(1), ctypes.c_double), 1
        params.text_embeds, params.time_ids = arguments.tensor(values(1, POOLED)), arguments.tensor(values(1, 6))
        setattr(params, name, nowhere)
        assert lib.ebca_session_denoise(session.handle, ctypes.byref(params), ctypes.byref(out)) == 1
        assert lib.ebca_session_last_problem(session.handle).decode() == f"{name} has shape [1, 1073741824]"
    assert not out


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"prompt_2": "a"}, "prompt_2"),
        ({"negative_prompt_2": "a"}, "negative_prompt_2"),
        ({"pooled_prompt_embeds": values(1, 4)}, "pooled_prompt_embeds"),
        ({"negative_pooled_prompt_embeds": values(1, 4)}, "negative_pooled_prompt_embeds"),
        ({"target_size": (64, 64)}, "size_conditions"),
        ({"negative_crops_coords_top_left": (0, 4)}, "negative_size_conditions"),
    ],
)
def test_other_models_take_none_of_this(shapes: native.Engine, given: dict[str, Any], name: str) -> None:
    message = f"^{name} is for models that take pooled embeddings and sizes"
    with shapes.session() as session, pytest.raises(ParameterError, match=message):
        session.generate("a red circle", steps=1, **given)


def test_other_models_have_no_pooled_embeddings(shapes: native.Engine) -> None:
    assert shapes.info().pooled_width == 0
    with pytest.raises(ParameterError, match=r"^prompt_2 is for models"):
        shapes.encode_pooled_prompt("a red circle", "a square")
    with shapes.session() as session:
        arguments = values(1, 4, 16, 16), 1.0, values(1, 1, 24, 128)
        with pytest.raises(ParameterError, match=r"^time_ids is for models"):
            session.denoise(*arguments, time_ids=values(1, 6))
        assert session.denoise(*arguments).noise is not None
        with pytest.raises(ParameterError, match="'negative_original_size' is not a parameter"):
            session.invert(painted(64, 64), "a red circle", negative_original_size=(5, 5))
