"""What a session gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Result:
    """What `generate` made.

    images: list of PIL images, float32 array [n,H,W,3] in [0, 1], or None for output="latents".
    latents: [n,C,h,w] float32, scaled as the UNet sees them.
    energies: [evaluations,L,2,B,S] (attention, norm) or None; see `ebca.runtime.telemetry.energies.Energies`.
    attention_maps: [n,T,h,w] float32 or None; see `ebca.runtime.telemetry.attention_maps.AttentionMaps`.
    timesteps: of the evaluations.
    timings: seconds per stage; "unet_steps" is a list.
    parameters: everything needed to make the same images again, except arrays and images that were passed in; see
        `ebca.GenerateRequest`.
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
    """What `invert` found: latents [n,C,h,w] float32 from which DDIM sampling comes back to the image.

    timings: seconds per stage; "unet_steps" is a list.
    """

    latents: np.ndarray
    timings: Mapping[str, Any]
