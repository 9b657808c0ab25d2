"""Names and paths that a checkpoint can be loaded from, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.checkpoints import same_weights

from ebca.errors import ModelError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.model import Checkpoint


def test_tiny_is_built_in(tiny: Checkpoint) -> None:
    loaded = load_checkpoint("tiny")
    assert loaded.name == "tiny"
    assert same_weights(loaded.unet, tiny.unet)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(
        ModelError,
        match=r"unknown model 'sd-9': known names are tiny, tiny-xl, random-sd-1\.5, random-sdxl, sd-1\.4, sd",
    ):
        load_checkpoint("sd-9")


@pytest.mark.parametrize("name", ["./absent", "/absent/folder/model", "a/b/c", "~/absent"])
def test_an_absent_folder_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        load_checkpoint(name)


def test_an_absent_file() -> None:
    with pytest.raises(ModelError, match=r"there is no file absent/model\.safetensors"):
        load_checkpoint("absent/model.safetensors")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "x" * 300])
def test_paths_that_cannot_be(name: str) -> None:
    with pytest.raises(ModelError, match=r"model '.*' cannot be found: .*; check its path"):
        load_checkpoint(name)


def test_what_would_be_ignored_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="revision = 'fp16' means nothing for the built-in model tiny; leave revision"):
        load_checkpoint("tiny", revision="fp16")
    with pytest.raises(ModelError, match=r"tokenizer = '.*' means nothing for the built-in model tiny"):
        load_checkpoint("tiny", tokenizer=folder / "tokenizer")
    with pytest.raises(ModelError, match=r"revision = 'fp16' means nothing for .*, which is on this machine"):
        load_checkpoint(folder, revision="fp16")
