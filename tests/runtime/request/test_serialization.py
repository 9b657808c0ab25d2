"""Requests survive the way to JSON and back."""

import json
import warnings
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ebca
from ebca.runtime.images.files import read_parameters, save_image
from ebca.runtime.images.inputs import load_images
from ebca.runtime.request.fields import FIELD_PARTS, PARTS, GenerateRequest
from ebca.runtime.request.inputs import ARRAYS, implied_count, recorded
from ebca.runtime.request.serialization import from_json, from_parameters, to_json

NUMBERS = st.floats(-10, 10, width=32).map(float)
TAUS = st.floats(0, 1).map(float)
SCHEDULES = st.one_of(
    st.builds(ebca.Schedule.constant, NUMBERS),
    st.builds(ebca.Schedule.step, NUMBERS, TAUS),
    st.builds(ebca.Schedule.reverse_step, NUMBERS, TAUS),
    st.builds(ebca.Schedule.linear, NUMBERS, NUMBERS),
)
GAMMAS = st.one_of(NUMBERS, SCHEDULES, st.lists(NUMBERS, min_size=1, max_size=4).map(tuple))
TEXTS = st.one_of(st.text(max_size=20), st.lists(st.text(max_size=8), min_size=1, max_size=3))
SIZES = st.tuples(st.integers(0, 4096), st.integers(0, 4096))
EDITS = st.builds(
    ebca.Edit, prompt=TEXTS, direction=st.integers(0, 1), alpha=GAMMAS, gamma_attn=GAMMAS, gamma_norm=GAMMAS
)
REQUESTS = st.builds(
    GenerateRequest.of,
    prompt=TEXTS,
    negative_prompt=TEXTS,
    prompt_2=st.one_of(st.none(), TEXTS),
    negative_prompt_2=st.one_of(st.none(), TEXTS),
    original_size=st.one_of(st.none(), SIZES),
    crops_coords_top_left=st.one_of(st.none(), SIZES),
    negative_target_size=st.one_of(st.none(), SIZES),
    vae_tiling=st.booleans(),
    token_weights=st.dictionaries(st.one_of(st.text(min_size=1, max_size=6), st.integers(0, 76)), NUMBERS, max_size=3),
    guidance_scale=st.one_of(st.none(), NUMBERS),
    gamma_attn=GAMMAS,
    gamma_norm=GAMMAS,
    norm_factor=NUMBERS,
    edits=st.lists(EDITS, max_size=2).map(tuple),
    reset_edits=st.booleans(),
    subjects=st.one_of(
        st.none(), st.just("auto"), st.lists(st.text(max_size=6)), st.lists(st.lists(st.text(max_size=6)))
    ),
    regions=st.one_of(
        st.none(), st.dictionaries(st.text(max_size=6), st.one_of(st.tuples(*[TAUS] * 4), st.just("c.png")))
    ),
    subject_exclusion=GAMMAS,
    subject_balance=GAMMAS,
    subject_window=NUMBERS,
    image=st.one_of(st.none(), st.just("a.png"), st.lists(st.just("b.png"), min_size=1, max_size=2)),
    strength=st.one_of(st.none(), TAUS),
    repaint=st.one_of(st.none(), st.builds(ebca.RePaint, st.integers(1, 9), st.integers(1, 9), TAUS, st.booleans())),
    composite=st.booleans(),
    energies=st.booleans(),
    attention_maps=st.booleans(),
    steps=st.integers(1, 100),
    scheduler=st.one_of(st.none(), st.just("ddim")),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
    output=st.sampled_from(("pil", "np", "latents")),
)


@settings(deadline=None, max_examples=200)
@given(REQUESTS)
def test_a_request_survives_json(request: GenerateRequest) -> None:
    text = json.dumps(to_json(request))
    again = from_json(json.loads(text))
    assert again == request
    assert json.dumps(to_json(again)) == text


def test_arrays_and_images_are_embedded() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
    request = GenerateRequest.of(
        prompt_embeds=rng.standard_normal((1, 7, 8), np.float32),
        negative_prompt_embeds=rng.standard_normal((1, 7, 8)),
        pooled_prompt_embeds=rng.standard_normal((1, 5), np.float32),
        negative_pooled_prompt_embeds=rng.standard_normal((1, 5), np.float32),
        latents=rng.standard_normal((1, 4, 2, 2), np.float32),
        image=[image, rng.uniform(0, 1, (6, 5, 3)).astype(np.float32)],
        mask=rng.integers(0, 2, (6, 5), np.uint8),
        edits=(ebca.Edit(prompt_embeds=rng.standard_normal((1, 7, 8), np.float32), alpha=0.5),),
    )
    again = from_json(json.loads(json.dumps(to_json(request))))
    for name in (*ARRAYS, "mask"):
        ours, theirs = request.values()[name], again.values()[name]
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name
    assert np.array_equal(np.asarray(again.image_inputs.image[0]), np.asarray(image))  # type: ignore[index,arg-type]
    assert np.array_equal(again.image_inputs.image[1], request.image_inputs.image[1])  # type: ignore[index,arg-type]
    assert np.array_equal(again.guidance.edits[0].prompt_embeds, request.guidance.edits[0].prompt_embeds)  # type: ignore[arg-type]
    assert not {"image", "mask", *ARRAYS} & to_json(request, embedded=False).keys()
    assert "prompt_embeds" not in to_json(request, embedded=False)["edits"][0]


def test_missing_and_null_fields_get_their_defaults() -> None:
    assert from_json({}) == GenerateRequest()
    assert from_json({"prompt": "a", "seed": None, "token_weights": None}) == GenerateRequest.of(prompt="a")


def test_schedules_may_be_written_as_texts() -> None:
    request = from_json({"gamma_attn": "step:0.01:0.2", "edits": [{"prompt": "x", "alpha": "constant:1.3"}]})
    assert request.guidance.gamma_attn == ebca.Schedule.step(0.01, 0.2)
    assert request.guidance.edits == (ebca.Edit("x", alpha=ebca.Schedule.constant(1.3)),)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "the request is of type list"),
        ({"promt": "a"}, "a request has no `promt`; did you mean `prompt`?"),
        ({"gamma_attn": {"schedule": "sine", "value": 1}}, "gamma_attn is {'schedule': 'sine'"),
        ({"gamma_attn": True}, "gamma_attn is True; give a number"),
        ({"edits": {"prompt": "a"}}, "edits cannot be read"),
        ({"edits": [{"promt": "a"}]}, "an edit has no field 'promt'"),
        ({"repaint": {"jumps": 1}}, "repaint cannot be read"),
        ({"repaint": {"jump_length": 0}}, "jump_length is 0; give 1 or more"),
        ({"token_weights": [["cat"]]}, "token_weights cannot be read"),
        ({"regions": [["cat", [0, 0, 1, 1]]]}, "regions cannot be read"),
        ({"regions": {"cat": 3}}, "regions cannot be read"),
        ({"subject_balance": {"schedule": "sine"}}, "subject_balance is {'schedule': 'sine'}"),
        ({"image": {"png": "bm90IGEgcG5n"}}, "image cannot be read as a PNG"),
        ({"latents": {"dtype": "float32", "shape": [2], "data": "AAAA"}}, "latents cannot be read"),
        ({"latents": {"dtype": "object", "shape": [1], "data": ""}}, "latents cannot be read"),
    ],
    ids=str,
)
def test_invalid_requests_are_refused(data: Any, named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        from_json(data)
    assert named in str(caught.value)


def test_generate_takes_the_fields_of_a_request_with_their_defaults() -> None:
    parameters = signature(ebca.Session.generate).parameters
    assert parameters.keys() - {"self", "on_step", "unknown"} == FIELD_PARTS.keys()
    # None stands for the default of the part.
    defaults = GenerateRequest().values() | {"token_weights": None}
    for name in FIELD_PARTS:
        assert parameters[name].default == defaults[name], name


def test_no_field_is_in_two_parts() -> None:
    names = [one.name for kind in PARTS.values() for one in fields(kind)]
    names += [one.name for one in fields(GenerateRequest) if one.name not in PARTS]
    assert len(names) == len(set(names)) == len(FIELD_PARTS)


def test_an_embedded_image_is_the_same_image(tmp_path: Path) -> None:
    """PNG has no CMYK and no floats; orientation and transparency must survive."""
    pixels = np.random.default_rng(3).integers(0, 256, (6, 5, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.png", exif=exif)
    images = [
        Image.fromarray(pixels),
        Image.fromarray(pixels[..., :3]).convert("CMYK"),
        Image.open(tmp_path / "turned.png"),
    ]
    images += [Image.fromarray(pixels[..., 0] / np.float32(255)), Image.fromarray(pixels[..., 0] * np.uint16(257))]
    request = GenerateRequest.of(image=images, mask=images)
    again = from_json(json.loads(json.dumps(to_json(request))))
    for read in (again.image_inputs.image, again.image_inputs.mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.array_equal(load_images(read, 6, 5), load_images(images, 6, 5))  # type: ignore[arg-type]


def test_the_parameters_in_a_png_reproduce_its_image(tmp_path: Path) -> None:
    edit = ebca.Edit("a green star", alpha=ebca.Schedule.step(0.5, 0.2))
    with ebca.load("shapes", backend="onnxruntime") as engine, engine.session() as session:
        made = session.generate("a red circle", steps=3, seed=5, gamma_attn=0.002, token_weights={2: 1.5}, edits=[edit])
        save_image(made.images[0], tmp_path / "made.png", {**made.parameters, "image_index": 0})
        again = session.run(from_parameters(read_parameters(tmp_path / "made.png")))
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[0]))
    assert again.parameters == made.parameters


def test_regions_are_embedded_or_recorded_as_files_and_boxes(tmp_path: Path) -> None:
    mask = np.zeros((6, 5), bool)
    mask[:, :2] = True
    file = tmp_path / "mask.png"
    Image.fromarray(mask).save(file)
    regions: dict[str, Any] = {"a cat": (0, 0, 0.5, 1), "dog": file, "bird": mask, "fish": Image.open(file)}
    request = GenerateRequest.of(prompt="x", subjects="auto", regions=regions)
    again = from_json(json.loads(json.dumps(to_json(request)))).subject.regions
    assert again is not None and again["a cat"] == (0, 0, 0.5, 1) and again["dog"] == str(file)
    assert np.array_equal(again["bird"], mask) and again["fish"].size == (5, 6)  # type: ignore[union-attr,arg-type]
    assert from_json({"regions": {"cat": mask.astype(int).tolist()}}).subject.regions["cat"].shape == (6, 5)  # type: ignore[index,union-attr]
    assert "regions" not in to_json(request, embedded=False)

    found = json.loads(json.dumps(recorded(request)))["regions"]
    assert found["a cat"] == [0, 0, 0.5, 1] and found["bird"] == found["fish"] == []
    assert found["dog"]["file"] == str(file) and len(found["dog"]["sha256"]) == 64
    kept = {phrase: found[phrase] for phrase in ("a cat", "dog")}
    parameters = {"prompt": "x", "inputs": {"regions": kept}}
    assert from_parameters(parameters).subject.regions == {"a cat": (0, 0, 0.5, 1), "dog": str(file)}
    assert from_parameters({"inputs": {"regions": found}}, regions=None).subject.regions is None
    with pytest.raises(
        ebca.ParameterError, match="'regions' was given as an array or an object, which is not recorded"
    ):
        from_parameters({"inputs": {"regions": found}})
    with pytest.raises(ebca.ParameterError, match="the recorded regions cannot be read: 3"):
        from_parameters({"inputs": {"regions": 3}})
    Image.fromarray(~mask).save(file)
    with pytest.raises(ebca.ParameterError, match="is not the file that was used: its contents have changed"):
        from_parameters(parameters)
    file.unlink()
    with pytest.raises(ebca.ParameterError, match=r"regions '.*' cannot be read: No such file"):
        recorded(request)


def test_parameters_say_nothing_about_subjects_that_are_off() -> None:
    names = {"subjects", "regions", "subject_exclusion", "subject_balance", "subject_window"}
    assert not names & to_json(GenerateRequest.of(prompt="x"), embedded=False).keys()
    on = to_json(GenerateRequest.of(prompt="x", subjects=[]), embedded=False)
    assert names - on.keys() == {"regions"} and (on["subject_exclusion"], on["subject_window"]) == (2.0, 0.15)


def test_a_list_of_subjects_for_each_image_says_how_many_images() -> None:
    def counted(subjects: Any) -> int:
        return implied_count(GenerateRequest.of(prompt="x", subjects=subjects))

    assert [counted(each) for each in ("auto", ["a", "b"], [], [["a"], ["b"], []], [["a", "b"]])] == [1, 1, 1, 3, 1]


def test_second_prompts_and_pooled_embeddings_say_how_many_images() -> None:
    assert implied_count(GenerateRequest.of(prompt="x", prompt_2=["a", "b"])) == 2
    assert implied_count(GenerateRequest.of(prompt="x", negative_prompt_2=["a", "b", "c"])) == 3
    embeds = {"prompt_embeds": np.zeros((1, 7, 8)), "pooled_prompt_embeds": np.zeros((4, 5))}
    assert implied_count(GenerateRequest.of(**embeds)) == 4
