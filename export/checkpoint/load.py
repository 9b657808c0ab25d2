"""Load a checkpoint from wherever it is: built in, a hub repository, a folder, or a single file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ebca.errors import ModelError
from ebca.export.checkpoint.built_in import BUILT_IN
from ebca.export.checkpoint.folder import check_folder, choose_files, load_folder
from ebca.export.checkpoint.hub import fetch
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.places import FILE_SUFFIXES, HUB_ID, expanded
from ebca.export.checkpoint.prediction import PREDICTION_TYPES
from ebca.export.checkpoint.single_file import FileChoices, load_single_file
from ebca.export.checkpoint.tensor_file import check_suffix
from ebca.export.checkpoint.vae import load_preview_vae, load_vae

# The original repositories of 1.5 and inpainting were deleted; these have the same weights.
SHORT_NAMES: dict[str, str] = {
    "sd-1.4": "CompVis/stable-diffusion-v1-4",
    "sd-1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-1.5-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-turbo": "stabilityai/sdxl-turbo",
    "sdxl-inpainting": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def load_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    tokenizer: str | Path | None = None,
    vae: str | Path | None = None,
    preview_vae: str | Path | None = None,
    variant: str | None = None,
    ema: bool = False,
    prediction_type: str | None = None,
) -> Checkpoint:
    """Load a model for export.

    Args:
        model: a name of `SHORT_NAMES`, a hub id "owner/name", a folder in diffusers format (a pipeline or a UNet
            alone), a single .safetensors file of Stable Diffusion 1.x, 2.x or XL, or a built-in model with random
            weights, see `ebca.export.checkpoint.built_in`.
        revision: branch, tag or commit on the hub.
        token: hub access token; None takes HF_TOKEN or the stored login.
        cache_dir: hub cache; None takes HF_HOME.
        tokenizer: folder or JSON file to use instead of the model's own tokenizer; a single file has CLIP's.
        vae: folder in diffusers format or .safetensors file to use instead of the model's own VAE.
        preview_vae: folder of an AutoencoderTiny in diffusers format, which decodes latents for previews.
        variant: of a folder's weights, such as "fp16" or "non_ema"; None: full precision, else fp16.
        ema: take the averaged weights of a single file.
        prediction_type: "epsilon" or "v_prediction", whatever the model says; None: as it says.

    Raises:
        ModelError: the model cannot be found, read or exported; the message says what to do.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise ModelError(f"prediction_type is {prediction_type!r}", f"give {' or '.join(PREDICTION_TYPES)}")
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise ModelError(f"variant is {variant[:40]!r}", 'give the middle of the files\' names, such as "fp16"')
    if tokenizer is not None:
        tokenizer = expanded(tokenizer, "tokenizer")
    how = _How(revision, token, cache_dir, tokenizer, variant, ema, prediction_type)
    checkpoint = _load(str(model), how)
    _match_tokenizer(checkpoint)
    if prediction_type is not None:
        if checkpoint.scheduler_config is None:
            raise ModelError(
                f"{checkpoint.name} has no scheduler that prediction_type = {prediction_type!r} could change",
                "leave it out",
            )
        changed = {**checkpoint.scheduler_config, "prediction_type": prediction_type}
        checkpoint = replace(checkpoint, scheduler_config=changed)
    if vae is not None:
        checkpoint = load_vae(checkpoint, expanded(vae, "vae"), variant=variant)
    if preview_vae is not None:
        checkpoint = load_preview_vae(checkpoint, expanded(preview_vae, "preview_vae"), variant=variant)
    return checkpoint


@dataclass(frozen=True)
class _How:
    """Where a model may come from, and which of its weights are taken; see `load_checkpoint`."""

    revision: str | None
    token: str | None
    cache_dir: str | Path | None
    tokenizer: str | Path | None
    variant: str | None
    ema: bool
    prediction_type: str | None


def _load(model: str, how: _How) -> Checkpoint:
    weights = {"variant": how.variant, "ema": how.ema or None}
    if model in BUILT_IN:
        _refuse_unused(f"the built-in model {model}", revision=how.revision, tokenizer=how.tokenizer, **weights)
        return BUILT_IN[model].build()
    if model in SHORT_NAMES:
        return _load_hub(SHORT_NAMES[model], how)
    path = expanded(model, "model")
    if path.exists():
        _refuse_unused(f"{model}, which is on this machine", revision=how.revision)
    if path.is_dir():
        _refuse_unused(f"{model}, which is a folder (its averaged weights are a variant)", ema=how.ema or None)
        name = path.resolve().name
        source: dict[str, Any] = {"kind": "folder", "id": name, "revision": None}
        return load_folder(path, name=name, source=source, tokenizer=how.tokenizer, variant=how.variant)
    if path.is_file():
        _refuse_unused(f"{model}, which is a single file", variant=how.variant)
        choices = FileChoices(ema=how.ema, prediction_type=how.prediction_type)
        return load_single_file(path, tokenizer=how.tokenizer, choices=choices)
    if path.suffix.lower() in FILE_SUFFIXES:
        check_suffix(path)
        raise ModelError(f"there is no file {model}")
    if HUB_ID.fullmatch(model):
        return _load_hub(model, how)
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


def _load_hub(repo: str, how: _How) -> Checkpoint:
    _refuse_unused(f"{repo}, which has folders (averaged weights are a variant)", ema=how.ema or None)
    folder = fetch(
        repo,
        lambda names: choose_files(names, how.variant),
        check=check_folder,
        revision=how.revision,
        token=how.token,
        cache_dir=how.cache_dir,
    )
    # The hub cache names a snapshot's folder after its commit.
    source = {"kind": "hub", "id": repo, "revision": folder.name}
    return load_folder(folder, name=repo, source=source, tokenizer=how.tokenizer, variant=how.variant)


def _match_tokenizer(checkpoint: Checkpoint) -> None:
    """Check the tokenizer's ids against the text encoders' embedding tables, and limit its length to the positions."""
    if checkpoint.text_encoder is None or checkpoint.tokenizer_json is None:
        return
    size = Tokenizer.from_str(checkpoint.tokenizer_json).get_vocab_size(with_added_tokens=True)
    for encoder in (checkpoint.text_encoder, checkpoint.text_encoder_2):
        if encoder is not None and size > encoder.config.vocab_size:
            raise ModelError(
                f"the tokenizer has {size} tokens, the text encoder of {checkpoint.name} only "
                f"{encoder.config.vocab_size}",
                "pass the tokenizer that belongs to the model",
            )
    info = checkpoint.tokenizer_info
    info["model_max_length"] = min(info["model_max_length"], checkpoint.text_encoder.config.max_position_embeddings)
