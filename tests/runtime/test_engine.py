"""Calls on an engine without a session of one's own, repeated generations, and names of other programs."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.engines.cache.prepared import PreparedEngine
from ebca.runtime import runners
from ebca.runtime.shown import shown

QUICK: dict[str, Any] = {"steps": 2, "scheduler": "ddim"}


@pytest.fixture(scope="module")
def engine() -> Iterator[ebca.Engine]:
    with ebca.load("shapes", backend="onnxruntime") as engine:
        yield engine


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    image = Image.new("RGB", (64, 64), (190, 190, 190))
    image.paste((255, 0, 0), (40, 4, 60, 24))
    image.save(tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


def pixels(result: ebca.Result) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result.images])


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ebca.ParameterError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Engine.generate


def test_a_session_that_fits_is_opened_for_the_call(engine: ebca.Engine) -> None:
    prompts = ["a red circle", "a blue star"]
    with engine.session(64, 32, 2) as session:
        expected = session.generate(prompts, seed=[1, 2], **QUICK)
    given = {"height": 64, "width": 32, "seed": [1, 2], **QUICK}
    assert np.array_equal(pixels(engine.generate(prompts, **given)), pixels(expected))
    request = ebca.GenerateRequest.of(prompt=prompts, seed=[1, 2], **QUICK)
    assert np.array_equal(pixels(engine.run(request, height=64, width=32)), pixels(expected))
    assert expected.parameters["num_images"] == 2


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"prompt": "a"}, (1, 64, 64, 3)),
        ({"prompt": "a", "num_images": 3}, (3, 64, 64, 3)),
        ({"prompt": ["a", "b"]}, (2, 64, 64, 3)),
        ({"prompt": ["a", "b"], "num_images": 2}, (2, 64, 64, 3)),
        ({"prompt": "a", "negative_prompt": ["b", "c"]}, (2, 64, 64, 3)),
        ({"prompt": "a", "seed": [1, 2, 3]}, (3, 64, 64, 3)),
        ({"prompt": "a", "seed": np.arange(2)}, (2, 64, 64, 3)),
        ({"prompt": "a", "edits": [ebca.Edit(["b", "c"], alpha=0.5)]}, (2, 64, 64, 3)),
        ({"prompt": "a", "latents": np.ones((2, 4, 8, 12))}, (2, 32, 48, 3)),
        ({"prompt": "a", "width": 32}, (1, 64, 32, 3)),
        ({"prompt": "a", "image": np.zeros((64, 128, 3), np.uint8), "strength": 0.5}, (1, 44, 92, 3)),
        ({"prompt": "a", "image": np.zeros((2, 64, 64, 3), np.uint8), "strength": 0.5}, (2, 64, 64, 3)),
        ({"prompt": "a", "image": [Image.new("RGB", (64, 64))] * 2, "strength": 0.5, "height": 32}, (2, 32, 64, 3)),
    ],
    ids=shown,
)
def test_size_and_number_of_images_follow_from_the_request(
    engine: ebca.Engine, fields: dict[str, Any], shape: tuple[int, ...]
) -> None:
    assert engine.generate(**fields, **QUICK, output="np").images.shape == shape


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": ["a", "b"], "num_images": 4}, "num_images is 4, and the request has lists for 2 images"),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "prompt has 2 texts for a batch of 3"),
        ({"prompt": "a", "num_images": 0}, "num_images is 0; give 1 or more"),
        ({"prompt": "a", "num_images": 1.5}, "num_images is 1.5; give a whole number"),
        ({"prompt": "a", "height": 102}, "height is 102; give a multiple of"),
        ({"prompt": "a", "image": []}, "image is an empty list"),
        ({"prompt": "a", "edits": ["b"]}, "edits"),
        ({"prompt": "a", "edits": ebca.Edit("b")}, "edits is one Edit"),
        ({"prompt": "a", "seed": [[1], [1, 2]]}, "seed is [1]; give a whole number"),
        ({"prompt": [["a", "b"], ["c"]]}, "prompt has a text of type list; give a string"),
        ({}, "prompt has both texts and embeddings, or neither"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(engine: ebca.Engine, fields: dict[str, Any], named: str) -> None:
    assert named in refused(lambda: engine.generate(**fields, **QUICK))


def test_a_session_of_another_size_names_what_makes_it(engine: ebca.Engine) -> None:
    with engine.session() as session:
        for fields in ({"prompt": ["a", "b"]}, {"prompt": "a", "seed": [1, 2]}):
            message = refused(lambda fields=fields: session.generate(**fields))  # type: ignore[misc]
            assert message.endswith("Engine.generate makes any number, as does Engine.session(batch=2)")


def test_only_a_request_is_run(engine: ebca.Engine) -> None:
    assert "the request is of type str; give ebca.GenerateRequest" in refused(lambda: engine.run("a cat"))  # type: ignore[arg-type]


# --- Engine.repeat


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_image_file_repeats_its_generation(engine: ebca.Engine, tmp_path: Path, drawn: Path, suffix: str) -> None:
    for fields in (
        {"prompt": "a red circle", "num_images": 2, "gamma_norm": ebca.Schedule.step(0.003, 0.5), "width": 32},
        {"prompt": ["a red circle", "a star"], "token_weights": {1: 1.5}, "edits": [ebca.Edit("b", alpha=0.5)]},
        {"prompt": "a star", "image": drawn, "strength": 0.5, "height": 48},
        {"prompt": "a star", "image": drawn, "mask": [drawn, drawn], "scheduler": None, "steps": 3},
    ):
        made = engine.generate(**{"seed": 7, "gamma_attn": 0.002, **QUICK, **fields})  # type: ignore[arg-type]
        file = made.save(tmp_path / f"made{suffix}")[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = engine.repeat(file)
        assert np.array_equal(pixels(again), pixels(made)), fields
        assert again.parameters == made.parameters


def test_a_random_seed_is_repeated_too(engine: ebca.Engine, tmp_path: Path) -> None:
    made = engine.generate("a red circle", **QUICK)
    (file,) = made.save(tmp_path / "x.png")
    assert np.array_equal(pixels(engine.repeat(file)), pixels(made))


def test_changes_replace_single_fields(engine: ebca.Engine, tmp_path: Path) -> None:
    made = engine.generate("a red circle", seed=7, num_images=2, gamma_attn=0.002, **QUICK)
    file = made.save(tmp_path / "x.png")[0]
    other = engine.repeat(file, prompt="a blue star", width=32)
    expected = engine.generate("a blue star", seed=7, num_images=2, gamma_attn=0.002, height=64, width=32, **QUICK)
    assert np.array_equal(pixels(other), pixels(expected))
    assert len(engine.repeat(file, seed=[1, 2, 3]).images) == 3
    assert len(engine.repeat(file, num_images=1).images) == 1


def test_inputs_that_are_missing_changed_or_not_recorded_are_named(
    engine: ebca.Engine, tmp_path: Path, drawn: Path
) -> None:
    (of_file,) = engine.generate("a star", image=drawn, strength=0.5, seed=1, **QUICK).save(tmp_path / "a.png")
    picture = Image.open(drawn).copy()
    (of_object,) = engine.generate("a star", image=picture, strength=0.5, seed=1, **QUICK).save(tmp_path / "b.png")
    latents = np.ones((1, 4, 16, 16), np.float32)
    embeds = np.ones((1, 5, engine.manifest.unet.context_dim), np.float32)
    (of_arrays,) = engine.generate(
        prompt_embeds=embeds, negative_prompt_embeds=embeds, latents=latents, edits=[ebca.Edit(prompt_embeds=embeds)],
        **QUICK,
    ).save(tmp_path / "c.png")  # fmt: skip
    assert refused(lambda: engine.repeat(of_object)) == (
        "'image' was given as an array or an object, which is not recorded; give it again"
    )
    assert np.array_equal(pixels(engine.repeat(of_object, image=picture)), pixels(engine.repeat(of_file)))
    given: dict[str, Any] = {}
    for name, value in (
        ("prompt_embeds", embeds),
        ("negative_prompt_embeds", embeds),
        ("latents", latents),
        ("edits", [ebca.Edit(prompt_embeds=embeds)]),
    ):
        assert refused(lambda: engine.repeat(of_arrays, **given)).startswith(f"'{name}' was given as an array")
        given[name] = value
    with Image.open(of_arrays) as image:
        assert np.array_equal(pixels(engine.repeat(of_arrays, **given))[0], np.asarray(image))
    picture.rotate(90).save(drawn)
    assert refused(lambda: engine.repeat(of_file)) == (
        f"image '{drawn}' is not the file that was used: its contents have changed; "
        "restore it, or give `image` to use another one"
    )
    drawn.unlink()
    assert refused(lambda: engine.repeat(of_file)) == (
        f"image '{drawn}' cannot be read: No such file or directory; give `image` again"
    )


def test_another_engine_is_tried_with_a_warning(
    engine: ebca.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = engine.generate("a star", seed=1, **QUICK).save(tmp_path / "x.png")
    monkeypatch.setitem(engine.manifest.model, "name", "other")
    with pytest.warns(UserWarning) as caught:
        engine.repeat(file)
    (message,) = [str(one.message) for one in caught]
    assert message == f"'{file}' was made with another engine (model shapes, here other); the image will differ"


# --- names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("num_inference_steps", "is called `steps` here"),
        ("generator", "is called `seed` here, which is a number"),
        ("cfg_scale", "is called `guidance_scale` here"),
        ("guidance", "is called `guidance_scale` here"),
        ("negative", "is called `negative_prompt` here"),
        ("sampler", "is called `scheduler` here"),
        ("mask_image", "is called `mask` here"),
        ("output_type", "is called `output` here: 'pil', 'np' or 'latents'"),
        ("callback_on_step_end", "is called `on_step` here"),
        ("eta", "is a part of `repaint` here: repaint=ebca.RePaint(eta=...)"),
        ("gamma_tau", "is a part of the gammas here: gamma_attn=ebca.Schedule.reverse_step(0.01, tau=0.5)"),
        ("token_words", "is called `token_weights` here: {'crown': 2.5, 5: 0.5}"),
        ("gligen_phrases", "is called `subjects` here: ['red circle', 'blue square'], or 'auto'"),
        ("editing_prompt", "is a part of `edits` here: edits=[ebca.Edit('a boat', direction=1, alpha=1.3)]"),
        ("aesthetic_score", "belongs to the refiner, which is not supported"),
    ],
)
def test_names_of_other_programs_are_translated(engine: ebca.Engine, name: str, said: str) -> None:
    with engine.session() as session:
        for call in (session.generate, engine.generate, ebca.GenerateRequest.of):
            with pytest.raises(TypeError) as caught:
                call(prompt="a", **{name: None})  # type: ignore[operator]
            assert str(caught.value) == f"`{name}` {said}"
            assert isinstance(caught.value, ebca.ParameterError)


def test_sizes_and_counts_belong_to_the_session_or_to_the_engine(engine: ebca.Engine) -> None:
    with engine.session() as session:
        assert "Engine.session(height, width)" in refused(lambda: session.generate("a", width=64))  # type: ignore[arg-type]
        assert "Engine.generate(num_images=4)" in refused(lambda: session.generate("a", num_images_per_prompt=4))  # type: ignore[arg-type]
        assert "`steps`" in refused(lambda: session.invert("a.png", "a", num_inference_steps=4))  # type: ignore[arg-type]
        assert "no place in an inversion" in refused(lambda: session.invert("a.png", "a", subjects="auto"))  # type: ignore[arg-type]
    assert refused(lambda: engine.generate("a", num_images_per_prompt=4)) == (
        "`num_images_per_prompt` is called `num_images` here, and counts the images of all prompts together"
    )
    assert refused(lambda: engine.session(num_images=2)) == "`num_images` is called `batch` here"  # type: ignore[arg-type]


def test_loading_translates_names_before_it_opens_anything() -> None:
    message = refused(lambda: ebca.load("nowhere", device_map="cuda", torch_dtype=None))  # type: ignore[arg-type]
    assert message.startswith("`device_map` is called `device` here: ") and "`torch_dtype` is chosen when" in message


def test_a_misspelled_name_gets_the_closest_match(engine: ebca.Engine) -> None:
    with engine.session() as session:
        calls: dict[str, Callable[[], Any]] = {
            "Session.generate has no `gama_attn`; did you mean `gamma_attn`?": lambda: session.generate(
                "a",
                gama_attn=1,  # type: ignore[arg-type]
            ),
            "Engine.generate has no `num_image`; did you mean `num_images`?": lambda: engine.generate("a", num_image=1),
            "a request has no `stps`; did you mean `steps`?": lambda: ebca.GenerateRequest.of(stps=1),
            "ebca.load has no `devise`; did you mean `device`?": lambda: ebca.load("shapes", devise=1),  # type: ignore[arg-type]
            "Engine.session has no `heigth`; did you mean `height`?": lambda: engine.session(heigth=1),  # type: ignore[arg-type]
        }
        for message, call in calls.items():
            assert refused(call) == message
        message = refused(lambda: session.generate("a", xyz=1))  # type: ignore[arg-type]
        assert message.startswith("Session.generate has no `xyz`; there are prompt, ") and message.endswith(", on_step")


@pytest.mark.parametrize(("few", "dropped"), [(None, False), (1, True)])
def test_weights_are_dropped_before_decoding_unless_they_are_few(
    shapes_dir: Path, monkeypatch: pytest.MonkeyPatch, few: int | None, dropped: bool
) -> None:
    if few is not None:
        monkeypatch.setattr(runners, "_FEW_WEIGHTS_BYTES", few)
    names: list[str] = []
    monkeypatch.setattr(PreparedEngine, "forget", lambda self, asked: names.extend(asked))
    with ebca.load(shapes_dir, device="cpu") as engine:
        engine.generate("a red circle", steps=1, seed=1)
        assert names == (list(engine.manifest.unet.segments) if dropped else [])
