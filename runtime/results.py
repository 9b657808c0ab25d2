"""The results of a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Result:
    """Result of `Session.generate`.

    Attributes:
        images: list of PIL images, float32 array [n,H,W,3] in [0, 1], or None for output="latents".
        latents: [n,C,h,w] float32, scaled.
        energies: [evaluations,L,2,B,S] float32 (attention, norm) or None; see
            `ebca.runtime.telemetry.energies.Energies`.
        attention_maps: [n,T,h,w] float32 or None; see `ebca.runtime.telemetry.attention_maps.AttentionMaps`.
        timesteps: one per evaluation.
        timings: seconds per stage; "unet_steps" is a list with one value per evaluation.
        parameters: everything needed to reproduce the images, except arrays and images that were passed in; see
            `ebca.runtime.request.serialization.from_parameters`.
    """

    images: Any
    latents: np.ndarray
    energies: np.ndarray | None
    attention_maps: np.ndarray | None
    timesteps: tuple[float, ...]
    timings: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Inverted:
    """Result of `Session.invert`.

    Attributes:
        latents: [n,C,h,w] float32; DDIM sampling from them reproduces the image.
        timings: seconds per stage; "unet_steps" is a list with one value per evaluation.
    """

    latents: np.ndarray
    timings: Mapping[str, Any]
