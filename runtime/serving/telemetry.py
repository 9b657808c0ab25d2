"""Energies and attention maps as JSON."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ebca.runtime.components import Components
from ebca.runtime.images.files import png_bytes
from ebca.runtime.results import Result
from ebca.runtime.telemetry.attention_maps import draw_attention
from ebca.runtime.telemetry.energies import Energies
from ebca.runtime.text.chunks import Reading
from ebca.runtime.validation import texts_for_images

# Of attention, which lies in [0, 1].
_DIGITS = 5


def energies(result: Result, engine: Components) -> dict[str, Any] | None:
    """{"layers": [L], "evaluations": [{"evaluation", "timestep", "layer", "attention", "norm", "total"}]}; each term is
    nested lists [B][S]. None if they were not recorded."""
    if result.energies is None:
        return None
    layers = tuple(layer.name for layer in engine.manifest.unet.layers)
    found = Energies(result.timesteps, layers, result.energies, len(result.latents))
    return {"layers": list(layers), "images": len(result.latents), "evaluations": list(found.records())}


def attention(result: Result, engine: Components) -> dict[str, Any] | None:
    """{"images": [{"tokens": [T], "maps": [T][h][w]}]} for the tokens that an image's prompt has; None if they were not
    recorded."""
    if result.attention_maps is None:
        return None
    recorded = result.parameters
    reading = Reading(recorded["prompt_weighting"], recorded["long_prompts"])
    texts = texts_for_images("prompt", recorded.get("prompt") or "", len(result.latents))
    every = engine.tokenizer.reading(reading).encode(texts).tokens
    made = []
    for maps, labels in zip(result.attention_maps, every, strict=True):
        planes = [plane.round(_DIGITS).astype(float).round(_DIGITS).tolist() for plane in maps[: len(labels)]]
        made.append({"tokens": [label.removesuffix("</w>") for label in labels[: len(planes)]], "maps": planes})
    return {"images": made}


def attention_sheet(png: bytes, found: Mapping[str, Any]) -> bytes:
    """A PNG of labelled tiles: an image, and its entry of `attention`."""
    with Image.open(io.BytesIO(png)) as image:
        maps = np.asarray(found["maps"], np.float32)
        return png_bytes(draw_attention(image.convert("RGB"), maps, found["tokens"]))
