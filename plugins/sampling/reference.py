"""The four kernels in numpy, on arrays that are modified in place; see the package docstring."""

from collections.abc import Mapping

import numpy as np

from ebca.plugins.sampling.guidance import guide

Arrays = Mapping[str, np.ndarray]


def begin(a: Arrays) -> None:
    """Prepare the inputs of evaluation step[0]."""
    i = int(a["step"][0])
    images, channels = a["latents"].shape[:2]
    sample = a["sample"].reshape(-1, images, *a["sample"].shape[1:])
    sample[:, :, :channels] = a["latents"] * a["input_scale"][i]
    a["timestep"][...] = a["timesteps"][i]
    first = 0
    for name in ("weights", "gamma_attn", "gamma_norm"):
        target = a[name]
        target[...] = a["controls"][i, first : first + target.size].reshape(target.shape)
        first += target.size


def end(a: Arrays) -> None:
    """Apply guidance to the noise of evaluation step[0], and take the scheduler's step."""
    i = int(a["step"][0])
    noise = a["noise"].reshape(-1, *a["latents"].shape)
    with np.errstate(over="ignore", invalid="ignore"):
        e = a["history"][i] = guide(noise, a["guidance_scale"][0])
        row = a["coefficients"][i]
        total = a["start"].astype(np.float64) * row[0]
        for weight, past in zip(row[1 : i + 2], a["history"], strict=False):
            total += past.astype(np.float64) * weight
        a["latents"][...] = total
    if a["carry"][0]:
        a["contexts"][:, 1:] = a["contexts_out"][:, 1:]
    made = (e, a["latents"], a["contexts_out"])
    if not a["bad"][0] and not all(np.isfinite(array).all() for array in made):
        a["bad"][0] = i + 1


def advance(a: Arrays) -> None:
    """Advance to the next evaluation."""
    a["step"][0] += 1


def embed(a: Arrays) -> None:
    """Copy the time embeddings of evaluation step[0] to the UNet's buffers."""
    a["time_embeddings"][...] = a["embeddings"][a["embedding_base"] + a["step"][0] * a["embedding_stride"]]
