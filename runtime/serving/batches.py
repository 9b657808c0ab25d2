"""Jobs that can run as one batch: what they have in common, and the request of all of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.serialization import to_json
from ebca.runtime.serving.work import Work

_OWN = ("prompt", "seed")
"""What each image of a batch has for itself."""

_SHARED = (
    "negative_prompt", "steps", "guidance_scale", "scheduler", "gamma_attn", "gamma_norm", "clip_skip",
    "prompt_weighting", "long_prompts", "vae_tiling",
)  # fmt: skip
"""What they must agree in. A request with anything else runs alone."""


def alike(request: GenerateRequest, tokens: int, height: int, width: int) -> str | None:
    """A text that is the same for requests of one image that may run as one batch; None: this one runs alone.

    Args:
        request: with a seed.
        tokens: of its contexts. Images of a batch have equally many, so none is made with more of them than alone.
        height, width: in pixels.
    """
    values, usual = to_json(request), to_json(GenerateRequest.of(prompt=""))
    if not isinstance(values.get("prompt"), str) or not isinstance(values.get("seed"), int):
        return None
    if not isinstance(values.get("negative_prompt", ""), str):
        return None
    if any(value != usual.get(name) for name, value in values.items() if name not in (*_OWN, *_SHARED)):
        return None
    return json.dumps([height, width, tokens, {name: values.get(name) for name in _SHARED}], sort_keys=True)


def together(works: Sequence[Work]) -> Mapping[str, Any]:
    """The request of a batch of works that are alike."""
    return {**works[0].request, **{name: [work.request[name] for work in works] for name in _OWN}}


def size(waiting: int, most: int) -> int:
    """How many of those that wait to take: a power of two, because buffers are made for each number."""
    return 1 << (min(waiting, most).bit_length() - 1)
