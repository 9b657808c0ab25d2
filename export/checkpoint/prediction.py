"""What a single file's UNet predicts, noise or v: as the caller says, else as the file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ebca.errors import ModelError
from ebca.export.checkpoint.architectures import Architecture
from ebca.export.checkpoint.tensor_file import TensorFile

PREDICTION_TYPES: Final = ("epsilon", "v_prediction")

# The marker that v-prediction fine-tunes leave in the file.
_MARKER = "v_pred"
_METADATA = "modelspec.prediction_type"
_SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# Training steps that the published files of Stable Diffusion 2.x state.
_STEP_NAME, _BASE_STEPS = "global_step", 875000


@dataclass(frozen=True)
class Prediction:
    """What the UNet predicts: "epsilon" (noise) or "v_prediction"; and a line for whoever exports if it is assumed."""

    kind: str
    notices: tuple[str, ...] = ()


def predicted(file: TensorFile, architecture: Architecture, channels: int, given: str | None) -> Prediction:
    """Decide what the UNet predicts.

    In this order: what the caller gives, the marker tensor, the metadata, the number of training steps, and what models
    of this architecture predict if nothing says otherwise.

    Args:
        file: the checkpoint.
        architecture: its own.
        channels: of the UNet's input. Models with more than latents of Stable Diffusion 2.x predict noise.
        given: by the caller; None: decide.

    Raises:
        ModelError: metadata with a kind of prediction that is not supported.
    """
    if given is not None:
        return Prediction(given)
    if _MARKER in file:
        return Prediction("v_prediction")
    if (stated := file.metadata.get(_METADATA)) is not None:
        if (kind := _SPELLINGS.get(stated.strip().lower())) is None:
            raise ModelError(
                f"{file.path.name} says {_METADATA} = {stated[:40]!r}", "give --prediction-type epsilon or v_prediction"
            )
        return Prediction(kind)
    if architecture.predicts is None or channels != architecture.unet["in_channels"]:
        return Prediction("epsilon")
    if (named := file.metadata.get("modelspec.architecture", "")).startswith("stable-diffusion-v2"):
        return Prediction("v_prediction" if named.endswith("-v") else "epsilon")
    if _STEP_NAME in file and not file.shape(_STEP_NAME):
        return Prediction("epsilon" if int(file.read(_STEP_NAME)) == _BASE_STEPS else "v_prediction")
    return Prediction(
        architecture.predicts,
        (
            f"{file.path.name} does not say what its UNet predicts: taken as {architecture.predicts}, for 768x768 "
            "pixels; give --prediction-type epsilon for a model of 512x512 pixels",
        ),
    )
