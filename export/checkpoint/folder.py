"""Checkpoints in diffusers format: a pipeline folder, or the folder of a UNet alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

from ebca.errors import ModelError
from ebca.export.checkpoint.files import first_line, read_json
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.supported import check_unet_supported, is_xl
from ebca.export.checkpoint.supported_parts import (
    check_scheduler_supported,
    check_text_encoders_supported,
    check_vae_supported,
)
from ebca.export.checkpoint.tokenizer import both_tokenizers, tokenizer_json
from ebca.export.checkpoint.weight_files import DIFFUSERS_STEM, WeightFiles, local_weights, weight_files

# Base names of the weight files, as diffusers and transformers write them.
_STEMS = {"unet": DIFFUSERS_STEM, "vae": DIFFUSERS_STEM, "text_encoder": "model", "text_encoder_2": "model"}
_NETWORKS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "preview VAE": AutoencoderTiny,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "controlnet": ControlNetModel,
}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Stable Diffusion XL has two of each.
_TEXTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
# Of CLIPTextModelWithProjection: for whole-text embeddings, which Stable Diffusion 1.x and 2.x do not read.
_BESIDE_HIDDEN_STATES = ("text_projection.weight",)
_SMALL_FILES = re.compile(
    r"model_index\.json|config\.json|scheduler_config\.json"
    r"|(unet|vae|text_encoder(_2)?)/config\.json|scheduler/scheduler_config\.json"
    r"|tokenizer(_2)?/((tokenizer|vocab|tokenizer_config|special_tokens_map|added_tokens)\.json|merges\.txt)"
)


@dataclass(frozen=True)
class Layout:
    """The paths of a checkpoint folder's parts; None for a part that it lacks."""

    unet: Path
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None
    vae: Path | None = None
    tokenizer: Path | None = None
    tokenizer_2: Path | None = None
    scheduler: Path | None = None  # the file scheduler_config.json
    scheduler_class: str | None = None  # which a pipeline decides, whatever scheduler_config.json says
    zeros_for_empty: bool = True  # what a pipeline of Stable Diffusion XL makes of an empty negative prompt


def load_folder(
    folder: Path,
    *,
    name: str,
    source: dict[str, Any],
    tokenizer: str | Path | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Load a folder in diffusers format.

    Args:
        folder: of a pipeline, or of a UNet alone.
        name, source: of the checkpoint.
        tokenizer: replaces the folder's own.
        variant: of the weights; networks that do not have it are taken as without it, and a notice says so.

    Raises:
        ModelError: a folder that is incomplete, broken or not supported, or a variant that no network has.
    """
    layout = check_folder(folder)
    networks = {part: place for part in _STEMS if (place := getattr(layout, part)) is not None}
    # All of them before the first is read, which takes a while.
    weights = {part: local_weights(place, _STEMS[part], variant) for part, place in networks.items()}
    notices = _check_variant(str(folder), variant, {part: found.variant for part, found in weights.items()})
    tokenizer_source = tokenizer or layout.tokenizer
    text, info = tokenizer_json(tokenizer_source) if tokenizer_source else (None, {})
    if text is not None and layout.tokenizer_2 is not None:
        info = both_tokenizers(text, info, layout.tokenizer_2)
    loaded = {part: load_network(part, place, weights[part]) for part, place in networks.items()}
    return Checkpoint(
        name=name,
        unet=loaded["unet"][0],
        text_encoder=loaded["text_encoder"][0] if layout.text_encoder else None,
        text_encoder_2=loaded["text_encoder_2"][0] if layout.text_encoder_2 else None,
        vae=loaded["vae"][0] if layout.vae else None,
        tokenizer_json=text,
        tokenizer_info=info,
        scheduler_config=_scheduler_config(layout),
        source=source,
        force_zeros_for_empty_prompt=layout.text_encoder_2 is not None and layout.zeros_for_empty,
        notices=(*notices, *(notice for _, notice in loaded.values() if notice)),
    )


def _check_variant(place: str, variant: str | None, found: Mapping[str, str | None]) -> tuple[str, ...]:
    """A line about the networks that lack a variant. Raises ModelError if all of them do."""
    lacking = [part for part, other in found.items() if other != variant]
    if variant is None or not lacking:
        return ()
    if len(lacking) == len(found):
        raise ModelError(f"{place} has no weights of variant {variant!r}", "leave the variant out, or check its name")
    taken = ", ".join(f"{part} ({found[part] or 'full precision'})" for part in lacking)
    return (f"{place} has no variant {variant!r} of some networks, whose others are taken: {taken}",)


def check_folder(folder: Path) -> Layout:
    """Find the parts and check that each can be exported, reading only configurations."""
    layout = _find_layout(folder)
    unet_config = read_json(layout.unet / "config.json")
    check_unet_supported(unet_config)
    _check_texts(folder, layout, xl=is_xl(unet_config))
    encoders = [one for one in (layout.text_encoder, layout.text_encoder_2) if one is not None]
    if encoders:
        check_text_encoders_supported([read_json(one / "config.json") for one in encoders], unet_config)
    if layout.vae:
        check_vae_supported(read_json(layout.vae / "config.json"), unet_config.get("out_channels", 4))
    if layout.scheduler:
        check_scheduler_supported(read_json(layout.scheduler))
    return layout


def _check_texts(folder: Path, layout: Layout, *, xl: bool) -> None:
    """Raise ModelError if a model of Stable Diffusion XL lacks a text encoder or a tokenizer, or if another model has a
    second one."""
    found = [part for part in _TEXTS if getattr(layout, part) is not None]
    if xl and found:
        missing = [part for part in _TEXTS if part not in found]
        if missing:
            raise ModelError(
                f"{folder} is Stable Diffusion XL and has no {missing[0]}", "take a complete one, or its UNet alone"
            )
    elif second := [part for part in found if part.endswith("_2")]:
        raise ModelError(
            f"unsupported model: {folder} has {second[0]}, and its UNet is none of Stable Diffusion XL",
            "only those have two text encoders",
        )


def _scheduler_config(layout: Layout) -> dict[str, Any] | None:
    if layout.scheduler is None:
        return None
    config = read_json(layout.scheduler)
    return {**config, "_class_name": layout.scheduler_class} if layout.scheduler_class else config


def choose_files(names: list[str], variant: str | None = None) -> list[str]:
    """The files of a hub repository that `load_folder` reads, with one set of weights per network.

    Raises:
        ModelError: no safetensors weights, or none of this variant.
    """
    chosen = [name for name in names if _SMALL_FILES.fullmatch(name)]
    parts = list(_STEMS) if "unet/config.json" in names else [""]
    variants: dict[str, str | None] = {}
    for part in parts:
        prefix = f"{part}/" if part else ""
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        found = weight_files(inside, _STEMS[part or "unet"], variant)
        if found:
            variants[part or "unet"] = found.variant
            chosen += [prefix + name for name in (*found.files, *found.index)]
        elif part and "config.json" in inside:
            raise ModelError(
                f"the hub repository has no safetensors weights for the {part}",
                "pickled weights (.bin) are never loaded: take another revision or repository of the model",
            )
    _check_variant("the hub repository", variant, variants)
    return chosen


def _find_layout(folder: Path) -> Layout:
    if (folder / "model_index.json").is_file():
        return _pipeline_layout(folder, read_json(folder / "model_index.json"))
    if (folder / "unet" / "config.json").is_file():
        parts: dict[str, Any] = {part: _part(folder, part) for part in (*_TEXTS, "vae", "scheduler")}
        return Layout(folder / "unet", **parts)
    if (folder / "config.json").is_file():
        scheduler = folder / "scheduler_config.json"
        return Layout(folder, scheduler=scheduler if scheduler.is_file() else None)
    if (folder / "manifest.json").is_file():
        raise ModelError(f"{folder} is an engine directory already", "name the model that it was made from")
    hint = next(iter(sorted(folder.glob("*.safetensors"))), None)
    advice = f"; to load {hint.name}, pass the path of that file" if hint else ""
    raise ModelError(
        f"{folder} is not in diffusers format: it has neither model_index.json (a pipeline), "
        f"unet/config.json nor config.json (a UNet){advice}"
    )


def _pipeline_layout(folder: Path, index: dict[str, Any]) -> Layout:
    pipeline = index.get("_class_name", "a pipeline")
    if not _class_of(index, "unet"):
        network = _class_of(index, "transformer") or _class_of(index, "prior") or "no UNet"
        raise ModelError(
            f"unsupported model: {pipeline} is built on {network}", "only UNet2DConditionModel is supported"
        )
    if index.get("requires_aesthetics_score"):
        raise ModelError(
            f"unsupported model: {pipeline} with requires_aesthetics_score is the refiner of Stable Diffusion XL",
            "export the base model",
        )
    zeros = index.get("force_zeros_for_empty_prompt", True)
    if not isinstance(zeros, bool):
        raise ModelError(
            f"model_index.json of {folder} has force_zeros_for_empty_prompt = {str(zeros)[:40]!r}", "give true or false"
        )
    for part, allowed in _CLASSES.items():
        kind = _class_of(index, part)
        if kind and kind not in allowed:
            raise ModelError(
                f"unsupported model: the {part} of {pipeline} is {kind}", f"only {allowed[0]} is supported"
            )
        if kind and _part(folder, part) is None:
            file = "config.json" if part in _STEMS else "vocab.json"
            raise ModelError(f"{folder} is incomplete: model_index.json names {part}, but {part}/{file} is missing")
    parts = {part: _part(folder, part) for part in (*_CLASSES, "scheduler") if _class_of(index, part)}
    unet = parts.pop("unet")
    assert unet is not None
    return Layout(unet, **parts, scheduler_class=_class_of(index, "scheduler"), zeros_for_empty=zeros)


def _class_of(index: dict[str, Any], part: str) -> str | None:
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def _part(folder: Path, part: str) -> Path | None:
    """The part's folder (for the scheduler, its file), or None."""
    if part == "scheduler":
        file = folder / part / "scheduler_config.json"
        return file if file.is_file() else None
    signs = ("config.json",) if part in _STEMS else ("vocab.json", "tokenizer.json")
    return folder / part if any((folder / part / sign).is_file() for sign in signs) else None


def load_network(part: str, folder: Path, found: WeightFiles) -> tuple[Any, str]:
    """Load one network from safetensors in float32, refusing weights that do not fill it.

    Args:
        part: one of `_NETWORKS`.
        folder: its own.
        found: its weight files.

    Returns:
        The network, and a line about tensors that it has no place for; "" if there are none.
    """
    model_class = _NETWORKS[part]
    # transformers prints a mismatch as a table and raises without naming it, unless told to report it.
    clip: dict[str, Any] = {"dtype": torch.float32, "ignore_mismatched_sizes": True}
    options = clip if part in _TEXTS else {"torch_dtype": torch.float32}
    try:
        with _no_progress_bar():
            model, report = model_class.from_pretrained(
                str(folder),
                variant=found.variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # whatever the libraries meet on their way through a configuration
        raise ModelError(f"cannot load the {part} in {folder}: {_without_advice(error)}") from error
    # Both libraries fill a missing tensor with random numbers and only warn.
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    if mismatched:
        raise ModelError(f"the {part} in {folder} does not fit its config.json: {mismatched[0]} has another shape")
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the {part} in {folder} lacks {len(missing)} tensors, first {missing[0]}", "download it again"
        )
    # Tensors that a configuration forgets may mean that it is another network's.
    unused = sorted(name for name in report.get("unexpected_keys", ()) if name not in _BESIDE_HIDDEN_STATES)
    notice = ""
    if unused:
        notice = f"the {part} in {folder} has {len(unused)} tensors that its config.json has no place for, first "
        notice += f"{unused[0]}; they are left out, as in diffusers"
    return model.eval().requires_grad_(False), notice


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws a bar per load, which would disturb the caller's progress display."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _without_advice(error: BaseException) -> str:
    """The libraries follow the problem with advice for programmers."""
    return first_line(error).partition(". If you want")[0]
