"""An engine directory with ControlNets in the C library: it runs without them, and gives Python's bits."""

from pathlib import Path

import numpy as np
import pytest

import ebca
from ebca.errors import ParameterError
from ebca.runtime import native

PROMPT = "a lion with a crown"


def test_it_runs_without_control_and_refuses_it(library: native.Library, tiny_controlled_dir: Path) -> None:
    asked = {"steps": 2, "seed": 1, "gamma_attn": 0.02, "output": "latents"}
    with ebca.load(tiny_controlled_dir, backend="onnxruntime") as engine, engine.session(64, 64) as session:
        expected = session.generate(PROMPT, **asked).latents
    with library.open(tiny_controlled_dir) as opened, opened.session(64, 64) as other:
        assert np.array_equal(other.generate(PROMPT, **asked).latents, expected)
        with pytest.raises(ParameterError, match="'control' is not a parameter"):
            other.generate(PROMPT, control="edges.png")
