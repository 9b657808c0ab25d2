"""What a manifest says of Stable Diffusion XL, and what is refused of it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import manifests as stamping

from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.entries import ADDED_INPUTS
from ebca.errors import EngineError

POOLED = 24
Change = Callable[[dict[str, Any]], object]


def tensor(dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


@pytest.fixture(scope="module")
def data(shapes_dir: Path) -> dict[str, Any]:
    """The bundled model's, as if it were one of Stable Diffusion XL."""
    data = stamping.load(shapes_dir)
    unet, text, parts = data["unet"], data["text_encoder"], data["components"]
    unet["inputs"] += ADDED_INPUTS
    unet["tensors"] |= {"text_embeds": tensor("float32", "batch", POOLED), "time_ids": tensor("float32", "batch", 6)}
    text |= {"pooled_size": POOLED, "first_hidden_size": 8}
    for name in {text["component"], text["layers_component"]} - {None}:
        parts[name]["inputs"]["input_ids_2"] = parts[name]["inputs"]["input_ids"]
        parts[name]["outputs"]["pooled"] = tensor("float32", "batch", POOLED)
    data["tokenizer"]["info"] |= {"pad_token_2": "!", "pad_token_id_2": 0}
    data["model"]["force_zeros_for_empty_prompt"] = True
    return data


def parsed(data: dict[str, Any], change: Change = lambda data: None) -> manifests.Manifest:
    changed = copy.deepcopy(data)
    change(changed)
    return manifests.parse(stamping.stamped(changed))


def test_what_is_said_of_two_text_encoders(data: dict[str, Any]) -> None:
    manifest = parsed(data)
    assert manifest.unet.inputs == ("sample", "timestep", "contexts", *ADDED_INPUTS)
    assert manifest.text_encoder is not None
    assert manifest.unet.pooled_size == manifest.text_encoder.pooled_size == POOLED
    assert manifest.force_zeros_for_empty_prompt
    assert manifests.parse(manifest.to_json().encode()) == manifest


def test_others_say_nothing_of_it(shapes_dir: Path) -> None:
    manifest = manifests.read(shapes_dir)
    assert manifest.text_encoder is not None
    assert manifest.unet.pooled_size is None and manifest.text_encoder.pooled_size is None
    assert not manifest.force_zeros_for_empty_prompt


def test_sizes_are_no_part_of_what_depends_on_the_timestep_alone(data: dict[str, Any]) -> None:
    """So no table of its results, one per timestep, is made."""

    def read_sizes(data: dict[str, Any]) -> None:
        step = data["unet"]["plan"][0]
        step["inputs"].append("time_ids")
        data["components"][step["segment"]]["inputs"]["time_ids"] = data["unet"]["tensors"]["time_ids"]

    assert parsed(data).unet.time_step is not None
    assert parsed(data, read_sizes).unet.time_step is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["unet"].update(inputs=d["unet"]["inputs"][:4]), "and perhaps text_embeds, time_ids, or other"),
        (lambda d: d["unet"].update(inputs=d["unet"]["inputs"][::-1]), "the UNet has other inputs than"),
        (lambda d: d["unet"]["tensors"].pop("text_embeds"), "no tensor 'text_embeds' of a known width"),
        (lambda d: d["unet"]["tensors"].update(text_embeds=tensor("float32", "batch", "tokens")), "known width"),
        (lambda d: d["unet"]["tensors"].update(time_ids=tensor("float32", "batch", 5)), "'time_ids' of the UNet is"),
        (lambda d: d["unet"]["tensors"].update(time_ids=tensor("float16", "batch", 6)), "'time_ids' of the UNet is"),
        (lambda d: d["unet"].update(inputs=d["unet"]["inputs"][:3]), "and the UNet's text_embeds are None wide"),
        (lambda d: d["text_encoder"].update(pooled_size=0), "text_encoder.pooled_size is 0"),
        (lambda d: d["tokenizer"]["info"].update(pad_token_2=None), "two text encoders, and tokenizer.info has no pad"),
        (lambda d: d["tokenizer"]["info"].update(pad_token_id_2=-1), "pad_token_id_2 is -1"),
        (lambda d: d["model"].update(force_zeros_for_empty_prompt=1), "force_zeros_for_empty_prompt is 1"),
        (lambda d: d["components"]["text_encoder"]["inputs"].pop("input_ids_2"), "the text encoder has the tensors"),
        (lambda d: d["components"]["text_encoder"]["outputs"].pop("pooled"), "the text encoder has the tensors"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(data: dict[str, Any], change: Change, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        parsed(data, change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_padding_of_a_second_text_encoder_that_is_not_there_is_refused(shapes_dir: Path) -> None:
    data = stamping.load(shapes_dir)
    data["tokenizer"]["info"] |= {"pad_token_2": "!", "pad_token_id_2": 0}
    with pytest.raises(EngineError, match="has pad_token_2, and there is one text encoder"):
        manifests.parse(stamping.stamped(data))
