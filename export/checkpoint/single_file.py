"""Single-file checkpoints in the original layout of Stable Diffusion 1.x, 2.x and XL, read without network access.

diffusers can convert them too, but fetches the configurations from the hub; here they are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebca.errors import ModelError
from ebca.export.checkpoint.architectures import KNOWN, Architecture
from ebca.export.checkpoint.clip_vocabulary import clip_tokenizer
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.original_parts import (
    EMA_PREFIX,
    UNET_PREFIX,
    XL_TEXT_PREFIXES,
    Read,
    UnetWeights,
    read_text_encoder,
    read_unet,
    read_vae,
)
from ebca.export.checkpoint.prediction import Prediction, predicted
from ebca.export.checkpoint.supported import check_unet_supported
from ebca.export.checkpoint.tensor_file import TensorFile, open_tensors
from ebca.export.checkpoint.tokenizer import tokenizer_json, with_second_padding

_CONV_IN = "input_blocks.0.0.weight"
# The first cross-attention layer: that of Stable Diffusion XL comes later.
_TO_K = tuple(f"input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight" for block in (1, 4))
_LABEL = "label_emb.0.0.weight"
# The width of the context of the refiner of Stable Diffusion XL.
_REFINER = 1280
_NAME_LENGTH = 80

# Tensor names that identify what else a file can be, in the order in which they are checked.
_OTHER_FORMATS = (
    ("lora", "LoRA weights, not a checkpoint"),
    ("joint_blocks.", "Stable Diffusion 3, which has no UNet"),
    ("double_blocks.", "Flux, which has no UNet"),
    ("control_model.", "a ControlNet, not a checkpoint"),
)


@dataclass(frozen=True)
class FileChoices:
    """What the caller decides about a single file.

    Attributes:
        ema: take the averaged weights of the UNet.
        prediction_type: "epsilon" or "v_prediction"; None: as the file says.
    """

    ema: bool = False
    prediction_type: str | None = None


def load_single_file(
    path: Path,
    *,
    tokenizer: str | Path | None = None,
    choices: FileChoices | None = None,
    known: Sequence[Architecture] = KNOWN,
) -> Checkpoint:
    """Load a .safetensors file. Networks that the file lacks (a pruned VAE, say) are None.

    Args:
        path: of the file.
        tokenizer: folder or JSON file; None: CLIP's vocabulary, which all models of these architectures have.
        choices: the caller's; None: the defaults.
        known: architectures, one of which has the file's context width.

    Raises:
        ModelError: the file is of another kind, broken, or lacks what `choices` asks for.
    """
    choices = choices or FileChoices()
    with open_tensors(path) as file:
        weights, notices = _unet_weights(file, choices)
        architecture, channels = _architecture(file, weights, known)
        prediction = predicted(file, architecture, channels, choices.prediction_type)
        config = _unet_config(architecture, channels, prediction)
        check_unet_supported(config)
        text_encoder, text_encoder_2 = _text_encoders(file, architecture)
        unet = read_unet(file, weights, config)
        vae = read_vae(file, architecture.vae)
        name = _name(file)
    text: str | None = None
    info: dict[str, Any] = {}
    if tokenizer is not None:
        text, info = tokenizer_json(tokenizer)
    elif text_encoder is not None:
        text, info = clip_tokenizer(architecture.pad_token)
    if text is not None and text_encoder_2 is not None:
        info = with_second_padding(text, info, architecture.pad_token_2)
    read = [one for one in (unet, text_encoder, text_encoder_2, vae) if one is not None]
    return Checkpoint(
        name=name,
        unet=unet.network,
        text_encoder=text_encoder and text_encoder.network,
        text_encoder_2=text_encoder_2 and text_encoder_2.network,
        vae=vae and vae.network,
        tokenizer_json=text,
        tokenizer_info=info,
        scheduler_config=_scheduler_config(architecture, prediction),
        source={"kind": "single-file", "id": path.name, "revision": None},
        # As diffusers' pipelines of Stable Diffusion XL do unless they are told.
        force_zeros_for_empty_prompt=text_encoder_2 is not None,
        notices=(*notices, *prediction.notices, *(line for one in read for line in one.notices)),
    )


def _unet_weights(file: TensorFile, choices: FileChoices) -> tuple[UnetWeights, tuple[str, ...]]:
    """Which UNet weights are taken, and a line if the file has two sets.

    Raises:
        ModelError: no Stable Diffusion checkpoint, or averaged weights that are not there.
    """
    for mark, meaning in _OTHER_FORMATS:
        if any(mark in name for name in file.names):
            raise ModelError(f"{file.path.name} holds {meaning}")
    prefix = next((one for one in (UNET_PREFIX, "") if _is_unet(file, UnetWeights(one))), None)
    has_ema = _is_unet(file, UnetWeights("", averaged=True))
    if prefix is None and not has_ema:
        _refuse(file)
    if choices.ema and not has_ema:
        raise ModelError(
            f"{file.path.name} has no averaged weights ({EMA_PREFIX}...), as many files whose only weights are those",
            "leave --ema out",
        )
    if prefix is None:
        return UnetWeights("", averaged=True), (f"{file.path.name} has averaged weights (EMA) only, which are taken",)
    if not has_ema:
        return UnetWeights(prefix), ()
    taken, other = ("averaged", "plain") if choices.ema else ("plain", "averaged")
    remedy = "leave --ema out for those" if choices.ema else "give --ema for those"
    notice = f"{file.path.name} has plain and averaged weights (EMA): the {taken} ones are taken, not the {other}; "
    return UnetWeights(prefix, averaged=choices.ema), (notice + remedy,)


def _is_unet(file: TensorFile, weights: UnetWeights) -> bool:
    """Whether the first convolution and a cross-attention layer are among these."""
    return weights.name(_CONV_IN) in file and any(weights.name(layer) in file for layer in _TO_K)


def _text_encoders(file: TensorFile, architecture: Architecture) -> tuple[Read | None, Read | None]:
    """The text encoder, and the second one of Stable Diffusion XL. Raises ModelError for one without the other."""
    if architecture.text_encoder_2 is None:
        return read_text_encoder(file, architecture.text_encoder), None
    first = read_text_encoder(file, architecture.text_encoder, XL_TEXT_PREFIXES[0])
    second = read_text_encoder(file, architecture.text_encoder_2, XL_TEXT_PREFIXES[1], projection=True)
    if (first is None) != (second is None):
        prefix = XL_TEXT_PREFIXES[int(second is None)]
        raise ModelError(f"{file.path.name} has one of two text encoders: none is at {prefix}", "take a complete file")
    return first, second


def _refuse(file: TensorFile) -> None:
    if any("down_blocks." in name for name in file.names):
        raise ModelError(
            f"{file.path.name} holds weights in diffusers format; pass their folder, with config.json, instead"
        )
    raise ModelError(
        f"{file.path.name} is no Stable Diffusion checkpoint: it has no tensor {UNET_PREFIX}{_CONV_IN} or "
        f"{UNET_PREFIX}{_TO_K[0]}"
    )


def _architecture(file: TensorFile, weights: UnetWeights, known: Sequence[Architecture]) -> tuple[Architecture, int]:
    """The architecture whose context is as wide as the file's, and the number of the UNet's input channels."""
    shapes = []
    layer = next(one for one in _TO_K if weights.name(one) in file)
    for inner, axes in ((_CONV_IN, 4), (layer, 2)):
        name = weights.name(inner)
        shapes.append(file.shape(name))
        if len(shapes[-1]) != axes:
            raise ModelError(f"{file.path.name} holds {name} in shape {list(shapes[-1])}, not in {axes} dimensions")
    channels, width = shapes[0][1], shapes[1][1]
    labelled = weights.name(_LABEL) in file
    for architecture in known:
        if architecture.width == width:
            if labelled and architecture.text_encoder_2 is None:
                raise ModelError(f"{file.path.name} holds a class-conditional model ({_LABEL}), not supported")
            return architecture, channels
    if labelled and width == _REFINER:
        raise ModelError(f"{file.path.name} is the refiner of Stable Diffusion XL", "export the base model")
    widths = " or ".join(f"{one.width} ({one.name})" for one in known)
    raise ModelError(
        f"{file.path.name} is a model with context width {width}",
        f"single files are supported for context width {widths}, other models as folders in diffusers format",
    )


def _unet_config(architecture: Architecture, channels: int, prediction: Prediction) -> dict[str, Any]:
    config = {**architecture.unet, "in_channels": channels}
    if prediction.kind == "v_prediction" and architecture.side_if_v is not None:
        config["sample_size"] = architecture.side_if_v
    return config


def _scheduler_config(architecture: Architecture, prediction: Prediction) -> dict[str, Any]:
    config = dict(architecture.scheduler)
    if prediction.kind != "epsilon":
        config["prediction_type"] = prediction.kind
    return config


def _name(file: TensorFile) -> str:
    """The title that was stored with the weights, if it is short and one line; else the file's name."""
    title = file.metadata.get("modelspec.title", "").strip()
    return title if 0 < len(title) <= _NAME_LENGTH and title.isprintable() else file.path.stem
