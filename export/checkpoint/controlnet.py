"""ControlNets beside a UNet: a folder in diffusers format, a repository of the hub, or a single .safetensors file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from ebca.errors import ModelError
from ebca.export.checkpoint.controlnet_supported import check_controlnet_fits
from ebca.export.checkpoint.files import first_line, read_json
from ebca.export.checkpoint.folder import load_network
from ebca.export.checkpoint.hub import fetch
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.places import FILE_SUFFIXES, HUB_ID, expanded
from ebca.export.checkpoint.tensor_file import check_suffix, open_tensors
from ebca.export.checkpoint.weight_files import DIFFUSERS_STEM, local_weights, weight_files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "control_model."
_LDM, _DIFFUSERS = "time_embed.0.weight", "controlnet_cond_embedding.conv_in.weight"


def load_controlnets(
    checkpoint: Checkpoint,
    asked: Iterable[str],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Checkpoint:
    """The checkpoint with ControlNets.

    Args:
        checkpoint: the model that they control.
        asked: each a folder in diffusers format, a hub id "owner/name" or a .safetensors file, and `=name` after it for
            a name other than that of the folder or file.
        token: hub access token; None takes HF_TOKEN or the stored login.
        cache_dir: hub cache; None takes HF_HOME.

    Raises:
        ModelError: one cannot be found, read or exported, or is for another UNet.
    """
    found: dict[str, ControlNetModel] = {}
    notices = list(checkpoint.notices)
    for text in asked:
        place, name = _named(text)
        if name in found:
            raise ModelError(f"two ControlNets are called '{name}'", f"give one of them another name: {place}=NAME")
        found[name], notice = _load(place, checkpoint.unet, token, cache_dir)
        notices += [notice] if notice else []
    return replace(checkpoint, controlnets=found, notices=tuple(notices))


def _named(text: str) -> tuple[str, str]:
    """Where a ControlNet is, and what it is called."""
    place, equals, name = text.rpartition("=")
    if not equals or expanded(text, "ControlNet").exists():
        place, name = text, re.sub(r"[^A-Za-z0-9._-]", "_", Path(text).name.removesuffix(".safetensors"))
    if not place:
        raise ModelError(f"the ControlNet {text!r} names no place", "give a folder, a file or a hub id")
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"a ControlNet cannot be called {name!r}",
            f"give it a name of up to 64 letters, digits, '.', '_' and '-': {place}=NAME",
        )
    return place, name


def _load(
    place: str, unet: UNet2DConditionModel, token: str | None, cache_dir: str | Path | None
) -> tuple[ControlNetModel, str]:
    path = expanded(place, "ControlNet")
    if path.is_dir():
        return _load_folder(path, unet)
    if path.is_file() or path.suffix.lower() in FILE_SUFFIXES:
        check_suffix(path)
        if not path.exists():
            raise ModelError(f"there is no file {place}")
        return _load_file(path, unet), ""
    if not HUB_ID.fullmatch(place):
        raise ModelError(
            f"there is no ControlNet {place!r}", "give a folder in diffusers format, a .safetensors file or a hub id"
        )
    folder = fetch(place, _choose, check=lambda one: _check_folder(one, unet), token=token, cache_dir=cache_dir)
    return _load_folder(folder, unet)


def _choose(names: list[str]) -> list[str]:
    """The files of a hub repository that are read."""
    weights = weight_files(names, DIFFUSERS_STEM)
    return [name for name in names if name == "config.json"] + (
        [*weights.files, *weights.index] if weights is not None else []
    )


def _check_folder(folder: Path, unet: UNet2DConditionModel) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no ControlNet in diffusers format: it has no config.json")
    check_controlnet_fits(read_json(folder / "config.json"), unet.config)


def _load_folder(folder: Path, unet: UNet2DConditionModel) -> tuple[ControlNetModel, str]:
    _check_folder(folder, unet)
    network, notice = load_network("controlnet", folder, local_weights(folder, DIFFUSERS_STEM))
    return network, notice


def _load_file(path: Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """A file has no configuration, so it is that of the UNet, which it must fit anyway."""
    with open_tensors(path) as file:
        prefix = _PREFIX if _PREFIX + _LDM in file else ""
        if prefix + _LDM not in file and _DIFFUSERS not in file:
            raise ModelError(
                f"{path.name} is no ControlNet: it has no tensor {_PREFIX}{_LDM}, {_LDM} or {_DIFFUSERS}",
                "give a .safetensors file of a ControlNet, or its folder in diffusers format",
            )
        tensors = {name.removeprefix(prefix): file.read(name) for name in file.names if name.startswith(prefix)}
    config = _config_of(unet.config, tensors)
    check_controlnet_fits({"_class_name": "ControlNetModel", **config}, unet.config)
    with torch.device("meta"):
        controlnet = ControlNetModel.from_config(config)
    try:
        state = convert_controlnet_checkpoint(tensors, config)
        # The converter writes what it does not find as None.
        controlnet.load_state_dict({n: t for n, t in state.items() if t is not None}, strict=True, assign=True)
    except Exception as error:  # the converter assumes that every tensor is there
        raise ModelError(
            f"the ControlNet in {path.name} does not fit the architecture: {first_line(error)}", "download it again"
        ) from error
    network: ControlNetModel = controlnet.eval().requires_grad_(False)
    return network


def _config_of(unet: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The UNet's configuration as far as a ControlNet has the same fields, with what the tensors say."""
    fields = inspect.signature(ControlNetModel.__init__).parameters
    config = {name: unet[name] for name in fields if name in unet}
    layers = config["layers_per_block"]
    # A ControlNet has one number for all blocks.
    config["layers_per_block"] = layers if isinstance(layers, int) else next(iter(set(layers)))
    config["in_channels"] = unet["out_channels"]
    first = tensors.get("input_hint_block.0.weight", tensors.get(_DIFFUSERS))
    if first is not None and first.ndim == 4:
        config["conditioning_channels"] = int(first.shape[1])
    for name in ("input_blocks.1.1.transformer_blocks.0", "down_blocks.0.attentions.0.transformer_blocks.0"):
        to_k = tensors.get(f"{name}.attn2.to_k.weight")
        if to_k is not None and to_k.ndim == 2:
            config["cross_attention_dim"] = int(to_k.shape[1])
    return config
