"""Short texts of values: no array fills a screen."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.runtime.shown import shown

LARGE = np.arange(10000, dtype=np.float32).reshape(1, 100, 100)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (LARGE, "float32[1,100,100]"),
        (np.float32(0.5), repr(np.float32(0.5))),
        (Image.new("L", (4, 2)), "<L 4x2>"),
        ("x" * 100, repr("x" * 80 + "...")),
        ([1, "a", None], "[1, 'a', None]"),
        ((1.5,), "(1.5,)"),
        (list(range(50)), "[0, 1, 2, 3, 4, 5, ... (50 in all)]"),
        ({"a": LARGE}, "{'a': float32[1,100,100]}"),
        (ebca.GenerateRequest(), "GenerateRequest()"),
        (ebca.Edit("a cat", alpha=0.5), "Edit(prompt='a cat', alpha=0.5)"),
        (
            ebca.GenerateRequest.of(prompt="a", latents=LARGE, steps=20),
            "GenerateRequest(conditioning=Conditioning(prompt='a'), steps=20, latents=float32[1,100,100])",
        ),
        (
            ebca.GenerateRequest.of(image=LARGE, edits=[ebca.Edit(prompt_embeds=LARGE)]),
            "GenerateRequest(guidance=Guidance(edits=[Edit(prompt_embeds=float32[1,100,100])]), "
            "image_inputs=ImageInputs(image=float32[1,100,100]))",
        ),
        (ebca.EnergyControl(mask=LARGE), "EnergyControl(mask=float32[1,100,100])"),
        (ebca.Denoised(LARGE, LARGE), "Denoised(noise=float32[1,100,100], contexts=float32[1,100,100])"),
        (
            ebca.Energies((1.0,), ("a",), LARGE),
            "Energies(timesteps=(1.0,), layers=('a',), values=float32[1,100,100])",
        ),
        (
            ebca.StepInfo(0, 2, 981.0, LARGE, LARGE),
            "StepInfo(index=0, total=2, timestep=981.0, latents=float32[1,100,100], contexts=float32[1,100,100])",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_value_is_shown_shortly(value: Any, text: str) -> None:
    assert shown(value) == text
