"""The library accepts the manifests that Python accepts, and no others; files of an engine directory may be links."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import manifests as stamping
from helpers.links import linked_copy

import ebca
from ebca.bench.reliability.mutations import mutations
from ebca.engines.contract import dims
from ebca.engines.contract import manifest as manifests
from ebca.errors import BackendError, EngineError
from ebca.runtime import native

COUNT, SEED = 100, 3

Opened = Callable[[bytes], str]


@pytest.fixture
def folder(shapes_dir: Path, tmp_path: Path) -> Path:
    return linked_copy(shapes_dir, tmp_path)


@pytest.fixture
def opened(library: native.Library, folder: Path) -> Opened:
    return opener(library, folder)


def opener(library: native.Library, folder: Path) -> Opened:
    """Puts a manifest into a folder. Returns "" if the library opens it, else its error."""

    def open_with(contents: bytes) -> str:
        path = folder / manifests.FILE_NAME
        path.unlink()
        path.write_bytes(contents)
        try:
            # The manifest is read, then this library is refused.
            library.open(folder, onnxruntime="libm.so.6")
        except EngineError as error:
            return str(error)
        except BackendError:
            return ""
        raise AssertionError

    return open_with


def python_says(contents: bytes, folder: Path) -> str:
    try:
        manifests.parse(contents, f"'{folder / manifests.FILE_NAME}'")
    except EngineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("engine", ["shapes_dir", "tiny_xl_dir"])
def test_both_accept_the_same_manifests(
    library: native.Library, request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    folder = linked_copy(request.getfixturevalue(engine), tmp_path)
    opened = opener(library, folder)
    contents = (folder / manifests.FILE_NAME).read_bytes()
    assert opened(contents) == ""
    refused = same = accepted = 0
    for mutation in mutations(contents, random.Random(SEED), COUNT):
        mine, theirs = opened(mutation.contents), python_says(mutation.contents, folder)
        # The sizes of files come next, and `parse` does not look at them.
        mine = "" if "truncated or changed" in mine else mine
        assert bool(mine) == bool(theirs), f"{mutation.text}: {mine or 'accepted'}, in Python {theirs or 'accepted'}"
        assert len(mine.splitlines()) <= 1, mutation.text
        refused += bool(mine)
        same += bool(mine) and mine == theirs
        accepted += not mine
    # What JSON parsers say differs.
    assert accepted > COUNT // 20 and same > refused // 2


def test_kinds_of_manifests(shapes_dir: Path, opened: Opened) -> None:
    """Plans and full UNets, which the bundled engine lacks: those that are right, and wrong ones."""
    data = stamping.load(shapes_dir)
    unet, components = data["unet"], data["components"]
    edges = {side: {name: unet["tensors"][name] for name in unet[side]} for side in ("inputs", "outputs")}
    components["full"] = {**components["segment_00"], **edges}
    controls = {n: t for n, t in components["energy_attention_h2_d48.update"]["inputs"].items() if n not in "qkv"}
    components["whole"] = {**components["full"], "inputs": edges["inputs"] | controls}
    unet |= {"vanilla": "full", "whole": "whole", "channels_last": {"onnxruntime-cuda": ["skip_0"]}}
    side = {"latents": {"dtype": "float32", "shape": [1, 4, "height", 8]}}
    sizes = {"batch": [1, 1, 1], "height": [8, 8, 16], "width": [8, 8, 8]}
    image = {"image": {"dtype": "float32", "shape": [1, 3, "4*height", 32]}}
    plan = {"file": "tokenizer.json", "sizes": sizes, "inputs": side, "outputs": image, "scratch_bytes": None}
    shape = {name: [1, 2, 3] for name in dims.NAMES}
    data["plans"] = {
        "tensorrt": {
            "version": "10.1",
            "compute_capabilities": ["8.9"],
            "platform": "linux-x86_64",
            "shapes": [shape],
            "components": {"vae_decoder": [plan]},
        }
    }
    contents = stamping.stamped(data)
    manifests.parse(contents)
    assert opened(contents) == ""
    for place, wrong in (
        (unet, {"whole": "full"}),
        (unet, {"vanilla": "whole"}),
        (plan, {"file": "nothing"}),
        (plan, {"outputs": side}),
        (sizes, {"height": [8, 8, 8]}),
        (sizes, {"depth": [8, 8, 8]}),
        (shape, {"batch": [2, 1, 3]}),
    ):
        before = dict(place)
        place.update(wrong)
        contents = stamping.stamped(data)
        with pytest.raises(EngineError):
            manifests.parse(contents)
        assert "is broken" in opened(contents), wrong
        place.clear()
        place.update(before)


def test_two_text_encoders(library: native.Library, tiny_xl_dir: Path, tmp_path: Path) -> None:
    """Both runtimes say the same about parts of Stable Diffusion XL that do not fit each other."""
    folder = linked_copy(tiny_xl_dir, tmp_path)
    opened = opener(library, folder)
    data = stamping.load(folder)
    unet, encoder, info, components = data["unet"], data["text_encoder"], data["tokenizer"]["info"], data["components"]
    tensors, texts = unet["tensors"], components["text_encoder"]
    layers = components["text_encoder_layers"]

    def floats(*shape: str | int) -> dict[str, Any]:
        return {"dtype": "float32", "shape": [*shape]}

    half = {"dtype": "float16", "shape": ["batch", 40]}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (unet, {"inputs": ["sample", "timestep", "contexts"]}, "a step reads 'text_embeds' before it is written"),
        (unet, {"inputs": [*unet["inputs"][:4]]}, "and perhaps text_embeds, time_ids, or other outputs"),
        (unet, {"inputs": [*unet["inputs"][:3], "time_ids", "text_embeds"]}, "and perhaps text_embeds, time_ids"),
        (tensors, {"text_embeds": floats("batch", "width")}, "no tensor 'text_embeds' of a"),
        (tensors, {"text_embeds": floats(40)}, "no tensor 'text_embeds' of a known width"),
        (tensors, {"text_embeds": half}, "is float16 [batch, 40] instead of float32 [batch, 40]"),
        (
            tensors,
            {"text_embeds": floats("batch", 41)},
            "[batch, 40] instead of float32 [batch, 41]",
        ),
        (
            tensors,
            {"time_ids": floats("batch", 5)},
            "[batch, 5] instead of float32 [batch, 6]",
        ),
        (encoder, {"pooled_size": None}, "instead of input_ids"),
        (encoder, {"pooled_size": 0}, "text_encoder.pooled_size is 0"),
        (encoder, {"pooled_size": 40.0}, "text_encoder.pooled_size is 40.0"),
        (encoder, {"first_hidden_size": None}, "text_encoder.first_hidden_size is None, beside 80 in all"),
        (encoder, {"first_hidden_size": 80}, "text_encoder.first_hidden_size is 80, beside 80 in all"),
        (encoder, {"first_hidden_size": "32"}, "text_encoder.first_hidden_size is"),
        (info, {"pad_token_2": None}, "there are two text encoders, and tokenizer.info has no pad_token_2"),
        (info, {"pad_token_2": 7}, "tokenizer.info.pad_token_2 is 7"),
        (info, {"pad_token_id_2": None}, "tokenizer.info.pad_token_id_2"),
        (info, {"pad_token_id_2": -1}, "tokenizer.info.pad_token_id_2 is -1"),
        (data["model"], {"force_zeros_for_empty_prompt": 1}, "model.force_zeros_for_empty_prompt is 1"),
        (texts, {"inputs": {"input_ids": texts["inputs"]["input_ids"]}}, "has the tensors input_ids instead of"),
        (texts, {"outputs": layers["outputs"] | {"pooled": half}}, "tensor 'pooled' of the text encoder is float16"),
        (layers, {"inputs": texts["inputs"]}, "the text encoder's layers has the tensors"),
    ]
    assert opened(stamping.stamped(data)) == ""
    for place, wrong, message in cases:
        before = dict(place)
        place.update(wrong)
        contents = stamping.stamped(data)
        mine, theirs = opened(contents), python_says(contents, folder)
        assert mine == theirs and message in mine, (wrong, mine, theirs)
        place.clear()
        place.update(before)
    data["model"]["force_zeros_for_empty_prompt"] = False
    assert opened(stamping.stamped(data)) == ""


def test_layers_for_subjects(shapes_dir: Path, folder: Path, opened: Opened) -> None:
    """Both runtimes say the same about layers that cannot be, and about ops without guided variants."""
    data = stamping.load(shapes_dir)
    unet = data["unet"]
    found = dict(unet["subject_layers"])
    other = next(
        index
        for index, layer in enumerate(unet["layers"])
        if layer["height"] != unet["layers"][found["biased"][0]]["height"]
    )
    op = unet["ops"][unet["layers"][found["biased"][0]]["op"]]
    guided = data["components"][op["update_guided"]]
    told = []

    def both(message: str) -> None:
        contents = stamping.stamped(data)
        mine, theirs = opened(contents), python_says(contents, folder)
        assert mine == theirs and message in mine
        told.append(mine)

    for wrong, message in (
        ({"biased": []}, "subject_layers.biased is [] instead of ascending indices below"),
        ({"sources": [6, 5]}, "subject_layers.sources is [6, 5] instead of ascending"),
        ({"biased": [5, 5, 6]}, "subject_layers.biased is [5, 5, 6] instead of ascending"),
        ({"biased": [*range(90)]}, "subject_layers.biased is [0, 1, 2, 3, 4, 5, 6, 7] instead of ascending"),
        ({"sources": [1]}, "layer 1 is among the sources of subject_layers, but not biased"),
        ({"biased": [*sorted({*found["biased"], other})]}, "of subject_layers have different sizes"),
        ({"biased": "all"}, "subject_layers.biased is"),
        ({"sources": [-1]}, "subject_layers.sources[0] is"),
        ({"sources": None}, "subject_layers"),
    ):
        unet["subject_layers"] = {**found, **wrong}
        both(message)
    unet["subject_layers"] = found
    name = op.pop("update_masked_guided")
    both("has no variant 'update_masked_guided'")
    op["update_masked_guided"] = name
    groups = guided["inputs"]["token_groups"]
    guided["inputs"]["token_groups"] = {**groups, "dtype": "int64"}
    both("is int64 [batch, contexts, tokens] instead of int32 [batch, contexts, tokens]")
    guided["inputs"]["token_groups"] = groups
    maps = guided["outputs"].pop("maps")
    both("instead of g, maps, out")
    guided["outputs"]["maps"] = maps
    assert len(set(told)) == len(told)
    for absent in ({"subject_layers": None}, {}):
        del unet["subject_layers"]
        unet |= absent
        contents = stamping.stamped(data)
        assert opened(contents) == python_says(contents, folder) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', 'has "a" twice'),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 64 + "]" * 64, "not an ebca manifest"),
        ("\ufeff{}", "begins with a byte order mark"),
        ('{"a": 1e999}', "cannot be read"),
        ('{"a": NaN}', "cannot be read"),
        (r'{"a": "\ud800"}', "cannot be read"),
    ],
)
def test_json_that_parsers_read_differently_is_refused(opened: Opened, text: str, message: str) -> None:
    assert message in opened(text.encode())


def test_one_digit_is_enough(shapes_dir: Path, opened: Opened) -> None:
    contents = (shapes_dir / manifests.FILE_NAME).read_bytes()
    for before, after in (
        (b'"guidance_scale": 4.0', b'"guidance_scale": 5.0'),
        (b'"downscale": 4', b'"downscale":  4'),
    ):
        assert "was changed or damaged after the export" in opened(contents.replace(before, after, 1))
    assert "has manifest version 1, this library reads 2; export" in opened(
        contents.replace(b'sion": 2', b'sion": 1', 1)
    )


def test_a_directory_of_links_is_an_engine(
    library: native.Library, shapes_dir: Path, folder: Path, tmp_path: Path
) -> None:
    """As model caches have them; the directory itself is a link too."""
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    made = []
    for path in (linked, shapes_dir):
        with library.open(path, cache=tmp_path / "cache") as engine, engine.session() as session:
            made.append(session.generate("a red circle", steps=2, seed=1).pixels)
    assert np.array_equal(*made)
    (prepared,) = (tmp_path / "cache").iterdir()
    assert not [path for path in prepared.iterdir() if path.is_dir()]


@pytest.mark.parametrize("kind", ["pipe", "directory", "dangling link", "device"])
def test_what_is_no_file_is_refused(library: native.Library, folder: Path, kind: str) -> None:
    path = folder / "schedulers" / "pndm.f64"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    expected = "is a link to a file that is not there" if kind == "dangling link" else f"is a {kind} instead of a file"
    with pytest.raises(EngineError, match=f"pndm.f64' {expected}") as mine:
        library.open(folder)
    with pytest.raises(EngineError) as theirs:
        ebca.load(folder)
    assert str(mine.value) == str(theirs.value)


def test_special_tokens_are_those_of_the_vocabulary(library: native.Library, folder: Path) -> None:
    """A manifest that gives another token as padding is refused before the first prompt is read."""
    stamping.edit(folder, lambda data: data["tokenizer"]["info"].update(pad_token_id=0))
    with (
        library.open(folder) as engine,
        engine.session() as session,
        pytest.raises(EngineError, match=r"gives pad_token '<\|endoftext\|>' the id 0, and the vocabulary says 586"),
    ):
        session.generate("a red circle", steps=1)


def test_a_component_made_of_other_files_is_made_again(library: native.Library, folder: Path, tmp_path: Path) -> None:
    def prepared() -> list[str]:
        made: list[str] = []
        library.open(folder, cache=tmp_path / "cache", on_prepare=lambda *one: made.append(one[2])).close()
        return [name for name in made if name]

    assert "segment_03" in prepared() and prepared() == []
    stamping.edit(folder, lambda data: data["components"]["segment_03"].update(lowered={}))
    assert prepared() == ["segment_03"] and prepared() == []
