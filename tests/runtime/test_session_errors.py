"""What sessions and engines refuse, and what the errors say."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import manifests
from helpers.tiny import changed_copy

import ebca

PROMPT = "a lion with a crown"


@pytest.fixture(scope="module")
def unet_session(tiny_unet_dir: Path) -> Iterator[ebca.Session]:
    with ebca.load(tiny_unet_dir, backend="onnxruntime") as engine, engine.session(height=64, width=64) as session:
        yield session


def latents(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    return session.generate(prompt, **{"steps": 3, "seed": 1, "output": "latents"} | kwargs).latents


# --- sizes and parameters


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"height": 100}, "height is 100; give a multiple of 8, such as 96 or 104"),
        ({"width": 4}, "width is 4; give a multiple of 8, such as 8 or 16"),
        ({"height": 0}, "height is 0; give a multiple of 8"),
        ({"width": -64}, "width is -64; give a multiple of 8"),
        ({"height": 64.5}, "height is 64.5; give a whole number"),
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"batch": -1}, "batch is -1; give 1 or more"),
        ({"batch": 1.5}, "batch is 1.5; give a whole number"),
    ],
)
def test_wrong_sizes_are_refused(engine: ebca.Engine, kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        engine.session(**kwargs)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"steps": 0}, "steps is 0; give a whole number of at least 1"),
        ({"steps": -5}, "steps is -5"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 73}, "pndm with 73 steps is not in this engine (the nearest stored count is"),
        ({"scheduler": "lms"}, "scheduler 'lms' is not in this engine; available: pndm, ddim"),
        ({"gamma_attn": [0.1] * 3}, "gamma_attn has 3 values, but pndm with 3 steps makes 4 evaluations"),
        ({"gamma_norm": [0.1] * 51, "scheduler": "ddim"}, "gamma_norm has 51 values, but ddim with 3 steps makes 3"),
        ({"gamma_attn": float("nan")}, "gamma_attn: value nan"),
        ({"gamma_attn": "strong"}, "gamma_attn is 'strong'"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"output": "jpeg"}, "output is 'jpeg'; choose 'pil', 'np' or 'latents'"),
        ({"seed": [1, 2]}, "seed has 2 values for a batch of 1"),
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"seed": [1.5]}, "seed is 1.5; give a whole number"),
        ({"seed": "lucky"}, "seed is 'lucky'; give a whole number"),
        ({"seed": 2**64}, f"seed is {2**64}; give a number from -2^63 to 2^64 - 1"),
        ({"prompt": None}, "give either a prompt or prompt_embeds"),
        ({"prompt_embeds": np.zeros((1, 77, 32))}, "give either a prompt or prompt_embeds"),
        ({"prompt": ["a cat", "a dog"]}, "prompt has 2 texts for a batch of 1"),
        ({"prompt": [None]}, "prompt has a text of type NoneType; give a string"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts for a batch of 1"),
        ({"negative_prompt_embeds": np.zeros((1, 77, 768))}, "negative_prompt_embeds has shape [1, 77, 768]"),
        ({"negative_prompt_embeds": np.zeros((1, 20, 32))}, "negative_prompt_embeds has shape [1, 20, 32]"),
        ({"prompt": None, "prompt_embeds": np.full((1, 77, 32), np.nan)}, "prompt_embeds has values that are not"),
        ({"prompt": None, "prompt_embeds": np.zeros((3, 77, 32))}, "prompt_embeds has shape [3, 77, 32]"),
        ({"latents": np.zeros((1, 4, 16, 16))}, "latents have shape [1, 4, 16, 16], this session needs [1, 4, 8, 8]"),
        ({"latents": np.full((1, 4, 8, 8), np.inf)}, "latents have values that are not finite"),
        ({"token_weights": {"dog": 2.0}}, "the word 'dog' is not in the prompt; the prompt's tokens are: 1 'a'"),
        ({"token_weights": {77: 2.0}}, "token_weights names position 77; there are positions 0 to 76"),
        ({"token_weights": {-1: 2.0}}, "token_weights names position -1"),
        ({"token_weights": {2: float("nan")}}, "the factor of '2' in token_weights is nan"),
        ({"token_weights": {"lion": "much"}}, "the factor of 'lion' in token_weights is much"),
        ({"guidance_scale": "high"}, "guidance_scale is high; give a finite number"),
        ({"prompt": 5}, "prompt is 5; give a text, or one per image"),
        ({"latents": "noise"}, "latents is not an array of numbers; give an array [1, 4, 8, 8]"),
        ({"token_weights": {2.5: 2.0}}, "a position in token_weights is 2.5; give a whole number"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 77, 32)), "token_weights": {"lion": 2.0}},
            "names the word 'lion'; beside prompt_embeds, give its position",
        ),
        ({"norm_factor": float("nan")}, "norm_factor is nan"),
        ({"prompt": b"a cat"}, "prompt is b'a cat'; give a text, or one per image"),
        ({"prompt": {"a cat": 1}}, "prompt is {'a cat': 1}; give a text, or one per image"),
        ({"negative_prompt": b""}, "negative_prompt is b''; give a text, or one per image"),
        ({"edits": None}, "edits is None; give a list of ebca.Edit"),
        ({"edits": ebca.Edit("a dog")}, "edits is one Edit; give a list of ebca.Edit"),
        ({"edits": [ebca.Edit("a dog", direction=[1, 0])]}, "editing prompt 1 has direction [1, 0]; give 1"),
        ({"edits": [ebca.Edit(b"a dog")]}, "editing prompt 1 is b'a dog'; give a text, or one per image"),
        ({"token_weights": [("lion", 2.0)]}, "token_weights is [('lion', 2.0)]; give a dict of words or positions"),
        ({"token_weights": "lion"}, "token_weights is 'lion'; give a dict of words"),
        ({"image": b"\x89PNG"}, "image is of type bytes; give an image, its file, or an array of pixels"),
        ({"image": io.BytesIO(b"")}, "image is of type BytesIO; give an image, its file, or an array of pixels"),
        ({"reset_edits": "no"}, "reset_edits is 'no'; give True or False"),
        ({"composite": None}, "composite is None; give True or False"),
        ({"energies": "no"}, "energies is 'no'; give True or False"),
        ({"attention_maps": 2}, "attention_maps is 2; give True or False"),
        ({"on_step": 5}, "on_step is 5; give a function, or None"),
    ],
)
def test_wrong_parameters_are_refused_before_the_unet_is_bound(
    session: ebca.Session, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, Any], named: str
) -> None:
    def no_work(self: object, variant: str, **options: object) -> None:
        raise AssertionError("the UNet was bound")

    monkeypatch.setattr("ebca.runtime.execution.executor.Executor.record", no_work)
    with pytest.raises(ebca.ParameterError) as caught:
        session.generate(**{"prompt": PROMPT, "steps": 3, "output": "latents"} | kwargs)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "the request is of type NoneType; give ebca.GenerateRequest"),
        ({"prompt": PROMPT}, "the request is of type dict; give ebca.GenerateRequest"),
        (ebca.GenerateRequest(guidance=None), "guidance is of type NoneType; give ebca.runtime.conditioning.timeline."),  # type: ignore[arg-type]
    ],
)
def test_other_values_are_not_requests(session: ebca.Session, given: Any, named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        session.run(given)
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize("regularize", ["no", 5])
def test_regularize_is_a_switch_or_its_settings(session: ebca.Session, regularize: Any) -> None:
    with pytest.raises(ebca.ParameterError, match=r"regularize is .*; give True or False"):
        session.invert(np.zeros((64, 64, 3)), PROMPT, steps=3, regularize=regularize)


def test_a_closed_engine_refuses_calls(tiny_engine_dir: Path) -> None:
    engine = ebca.load(tiny_engine_dir, backend="onnxruntime")
    session, denoiser = engine.session(64, 64), ebca.Denoiser(engine)
    # A call that runs comes to its end.
    made = session.generate(PROMPT, steps=2, seed=1, on_step=lambda step: engine.close())
    assert len(made.images) == 1
    engine.close()
    sample = np.zeros((1, 4, 8, 8), np.float32)
    calls = (
        lambda: latents(session),
        lambda: session.invert(np.zeros((64, 64, 3)), PROMPT),
        lambda: engine.session(),
        lambda: denoiser(sample, 1, np.zeros((1, 1, 77, 32), np.float32)),
    )
    for call in calls:
        with pytest.raises(ebca.ParameterError, match=r"^this engine is closed; open it again with ebca.load, and"):
            call()


def test_a_word_needs_one_prompt_for_all_images(engine: ebca.Engine) -> None:
    with engine.session(64, 64, batch=2) as session:
        with pytest.raises(ebca.ParameterError, match="word 'cat', which needs one prompt for all images"):
            latents(session, ["a cat", "a dog"], token_weights={"cat": 2.0})
        assert np.isfinite(latents(session, ["a cat", "a cat"], token_weights={"cat": 2.0})).all()


def test_overflowing_guidance_is_distinguished_from_a_bad_noise_prediction(session: ebca.Session) -> None:
    with warnings.catch_warnings(), pytest.raises(ebca.NumericalError, match=r"latents .* lower guidance_scale"):
        warnings.simplefilter("error")
        latents(session, steps=1, scheduler="ddim", guidance_scale=1e39, seed=1)


def test_huge_gammas_name_the_layer(session: ebca.Session) -> None:
    with pytest.raises(ebca.NumericalError, match=r"attn2\) after segment_0\d"):
        latents(session, gamma_attn=1e30)
    assert np.isfinite(latents(session, gamma_attn=0.05)).all()


def test_an_inpainting_model_refuses_text_to_image(tiny_inpainting_dir: Path) -> None:
    with (
        ebca.load(tiny_inpainting_dir, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(ebca.EngineError, match=r"takes 9 channels \(an inpainting model\)"),
    ):
        latents(session)


# --- UNet-only directories


def test_a_unet_only_directory_names_what_it_lacks(unet_session: ebca.Session) -> None:
    embeds = np.zeros((1, 77, 32), np.float32)
    with pytest.raises(ebca.EngineError, match="holds a UNet only; pass prompt_embeds instead of a prompt"):
        unet_session.generate(PROMPT, output="latents")
    with pytest.raises(ebca.EngineError, match="no VAE; ask for output='latents'"):
        unet_session.generate(prompt_embeds=embeds, negative_prompt_embeds=embeds)
    with pytest.raises(ebca.ParameterError, match="guidance needs negative_prompt_embeds"):
        unet_session.generate(prompt_embeds=embeds, output="latents")
    assert unet_session.generate(prompt_embeds=embeds, guidance_scale=1, steps=1, output="latents").latents.any()


# --- engines


def test_onnxruntime_has_no_bfloat16(tiny_engine_dir: Path) -> None:
    with pytest.raises(ebca.BackendError, match="bf16"):
        ebca.load(tiny_engine_dir, backend="onnxruntime", precision="bf16")


@pytest.mark.parametrize(
    ("kwargs", "error", "named"),
    [
        ({"device": "tpu"}, ebca.ParameterError, "device 'tpu'"),
        ({"backend": "tensorflow"}, ebca.ParameterError, "backend 'tensorflow' is unknown"),
        ({"precision": "fp8"}, ebca.ParameterError, "precision 'fp8' is unknown"),
        ({"threads": 0}, ebca.ParameterError, "threads is 0"),
        ({"threads": "all"}, ebca.ParameterError, "threads is all; give 1 or more"),
        ({"threads": 1.5}, ebca.ParameterError, "threads is 1.5; give 1 or more"),
        ({"device": 0}, ebca.ParameterError, "device '0' is unknown; choose auto, cpu, cuda"),
        ({"device": None}, ebca.ParameterError, "device 'None' is unknown"),
        ({"backend": ["onnxruntime"]}, ebca.ParameterError, "is unknown; choose one of"),
        ({"on_prepare": 5}, ebca.ParameterError, "on_prepare is 5; give a function, or None"),
        ({"on_device": 5}, ebca.ParameterError, "on_device is 5; give a function, or None"),
    ],
)
def test_wrong_arguments_of_load_are_refused(
    tiny_engine_dir: Path, kwargs: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        ebca.load(tiny_engine_dir, **kwargs)


@pytest.mark.parametrize("value", [None, 5, b"shapes", ["shapes"]])
def test_other_values_are_not_engines(value: Any) -> None:
    for opened in (ebca.load, ebca.Denoiser):
        with pytest.raises(ebca.ParameterError) as caught:
            opened(value)
        assert str(caught.value) == f"engine is {value!r}; give an engine directory, or the name of a bundled engine"


@pytest.mark.parametrize("part", ["tokenizer", "table"])
def test_corrupted_tables_and_tokenizers_are_detected(tiny_engine_dir: Path, tmp_path: Path, part: str) -> None:
    folder = changed_copy(tiny_engine_dir, tmp_path / "engine", lambda data: None)
    manifest = manifests.load(folder)
    name = manifest["tokenizer"]["file"] if part == "tokenizer" else manifest["schedulers"]["tables"]["pndm"]["file"]
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with (
        ebca.load(folder, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(ebca.EngineError, match=rf"{Path(name).name}' is corrupted"),
    ):
        latents(session)
