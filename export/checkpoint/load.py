"""Load a checkpoint from wherever it is: built in, a hub repository, a folder, or a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ebca.errors import ModelError
from ebca.export.checkpoint.built_in import BUILT_IN
from ebca.export.checkpoint.folder import check_folder, choose_files, load_folder
from ebca.export.checkpoint.hub import fetch
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.places import FILE_SUFFIXES, HUB_ID, expanded
from ebca.export.checkpoint.single_file import check_suffix, load_single_file

# The original repositories of 1.5 and inpainting were deleted; these have the same weights.
SHORT_NAMES: dict[str, str] = {
    "sd-1.4": "CompVis/stable-diffusion-v1-4",
    "sd-1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-1.5-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
}


def load_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Load a model for export.

    Args:
        model: "sd-1.4", "sd-1.5", "sd-1.5-inpainting", a hub id "owner/name", a folder in diffusers format (a pipeline
            or a UNet alone), a single .safetensors file of Stable Diffusion 1.x, or a built-in model with random
            weights: "tiny", "random-sd-1.5".
        revision: branch, tag or commit on the hub.
        token: hub access token; None takes HF_TOKEN or the stored login.
        cache_dir: hub cache; None takes HF_HOME.
        tokenizer: folder or JSON file to use instead of the model's own tokenizer; a single file has none.

    Raises:
        ModelError: the model cannot be found, read or exported; the message says what to do.
    """
    if tokenizer is not None:
        tokenizer = expanded(tokenizer, "tokenizer")
    checkpoint = _load(str(model), revision, token, cache_dir, tokenizer)
    _match_tokenizer(checkpoint)
    return checkpoint


def _load(
    model: str,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    tokenizer: str | Path | None,
) -> Checkpoint:
    if model in BUILT_IN:
        _refuse_unused(f"the built-in model {model}", revision=revision, tokenizer=tokenizer)
        return BUILT_IN[model].build()
    if model in SHORT_NAMES:
        return _load_hub(SHORT_NAMES[model], revision, token, cache_dir, tokenizer)
    path = expanded(model, "model")
    if path.exists():
        _refuse_unused(f"{model}, which is on this machine", revision=revision)
    if path.is_dir():
        name = path.resolve().name
        source: dict[str, Any] = {"kind": "folder", "id": name, "revision": None}
        return load_folder(path, name=name, source=source, tokenizer=tokenizer)
    if path.is_file():
        return load_single_file(path, tokenizer=tokenizer, token=token, cache_dir=cache_dir)
    if path.suffix.lower() in FILE_SUFFIXES:
        check_suffix(path)
        raise ModelError(f"there is no file {model}")
    if HUB_ID.fullmatch(model):
        return _load_hub(model, revision, token, cache_dir, tokenizer)
    if "/" in model or "\\" in model:
        raise ModelError(f"there is no folder {model}")
    raise ModelError(
        f"unknown model {model!r}: known names are {', '.join((*BUILT_IN, *SHORT_NAMES))}",
        "else give a hub id (owner/name), a folder in diffusers format or a .safetensors file",
    )


def _refuse_unused(what: str, **given: object) -> None:
    """Raise ModelError for an argument that would be ignored."""
    for name, value in given.items():
        if value is not None:
            raise ModelError(f"{name} = {str(value)!r} means nothing for {what}", f"leave {name} out")


def _load_hub(
    repo: str,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    tokenizer: str | Path | None,
) -> Checkpoint:
    folder = fetch(repo, choose_files, check=check_folder, revision=revision, token=token, cache_dir=cache_dir)
    # The hub cache names a snapshot's folder after its commit.
    source = {"kind": "hub", "id": repo, "revision": folder.name}
    return load_folder(folder, name=repo, source=source, tokenizer=tokenizer)


def _match_tokenizer(checkpoint: Checkpoint) -> None:
    """Check the tokenizer's ids against the text encoder's embedding table, and limit its length to the positions."""
    if checkpoint.text_encoder is None or checkpoint.tokenizer_json is None:
        return
    config = checkpoint.text_encoder.config
    size = Tokenizer.from_str(checkpoint.tokenizer_json).get_vocab_size(with_added_tokens=True)
    if size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {size} tokens, the text encoder of {checkpoint.name} only {config.vocab_size}",
            "pass the tokenizer that belongs to the model",
        )
    info = checkpoint.tokenizer_info
    info["model_max_length"] = min(info["model_max_length"], config.max_position_embeddings)
