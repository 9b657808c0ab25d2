"""What calls of the C++ library return, as arrays of numpy."""

from ctypes import POINTER, byref, c_double, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.runtime.native.functions import Functions
from ebca.runtime.native.structures import Result as ResultStruct
from ebca.runtime.native.structures import Tensor


@dataclass(frozen=True)
class Result:
    """A copy of what a call returned. What it did not make is None, or empty.

    Attributes:
        task: "text-to-image", "image-to-image", "inpainting", "repaint" or "inversion"; "" for a single stage.
        scheduler: that was used.
        pixels: [n,H,W,3] uint8 RGB.
        latents: [n,C,h,w] float32, scaled as the UNet takes them.
        timesteps: of the m evaluations.
        unet_seconds: of each evaluation.
        seeds: that were used; empty if nothing was drawn.
        seconds: per stage.
        embeds: [n,T,D] float32.
        pooled_embeds: [n,P] float32, beside `embeds` of Stable Diffusion XL.
        noise: [B,C,h,w] float32, a prediction of `Session.denoise`.
        contexts: [B,S,T,D] float32 after the last layer, from `Session.denoise`.
        attention_energies, norm_energies: [m,L,B,S] float32, if `energies` was asked for.
        attention_maps: [n,T,h,w] float32, if it was asked for.
    """

    task: str
    scheduler: str
    pixels: np.ndarray | None
    latents: np.ndarray
    timesteps: list[float]
    unet_seconds: list[float]
    seeds: list[int]
    seconds: dict[str, float]
    embeds: np.ndarray | None = None
    noise: np.ndarray | None = None
    contexts: np.ndarray | None = None
    attention_energies: np.ndarray | None = None
    norm_energies: np.ndarray | None = None
    attention_maps: np.ndarray | None = None
    pooled_embeds: np.ndarray | None = None


def view(tensor: Tensor) -> np.ndarray | None:
    """The values of a tensor that the library owns; None without data."""
    return np.ctypeslib.as_array(tensor.data, tuple(tensor.shape[: tensor.rank])) if tensor.data else None


def called(library: Functions, function: Any, handle: c_void_p, *arguments: Any) -> Result:
    """Call a function whose last argument receives a result. Raises the library's errors."""
    out = POINTER(ResultStruct)()
    status = function(handle, *arguments, byref(out))
    try:
        library.check(status)
        return _copied(out.contents)
    finally:
        library.lib.ebca_result_free(out)


def _copied(result: ResultStruct) -> Result:
    shape = (result.image_count, result.height, result.width, 3)
    arrays = {name: view(getattr(result, name)) for name, kind in result._fields_ if kind is Tensor}
    copies = {name: None if array is None else array.copy() for name, array in arrays.items()}
    return Result(
        (result.task or b"").decode(),
        (result.scheduler or b"").decode(),
        np.ctypeslib.as_array(result.pixels, shape).copy() if result.pixels else None,
        timesteps=result.timesteps[: result.evaluations],
        unet_seconds=result.unet_seconds[: result.evaluations],
        seeds=result.seeds[: result.seed_count],
        seconds={
            name.removesuffix("_seconds"): getattr(result, name)
            for name, kind in result._fields_
            if kind is c_double and name.endswith("_seconds")
        },
        **copies,  # type: ignore[arg-type]
    )
