"""Whether a VAE computes in float16, and what is said where it cannot."""

import warnings
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

from ebca.errors import ExportError
from ebca.export.checkpoint.tiny import TINY
from ebca.export.checkpoint.tiny_xl import TINY_XL
from ebca.export.options import ExportOptions
from ebca.export.parity import check
from ebca.export.stages import vae
from ebca.export.stages.context import Context

HALF = ExportOptions("fp16", "fp16")


def computes_half(model: Any, options: ExportOptions, upcast: bool) -> bool:
    checkpoint = model.build()
    checkpoint.vae.register_to_config(force_upcast=upcast)
    unused: Any = None
    return vae._computes_half(Context(checkpoint, options, unused, unused, 0), checkpoint.vae)


def test_that_of_xl_computes_in_float32_if_it_says_that_it_must() -> None:
    """In other models nobody reads the field, and its default is true."""
    with pytest.warns(UserWarning, match=r"overflows float16 \(force_upcast\), so it computes in float32; .* --vae"):
        assert not computes_half(TINY_XL, HALF, upcast=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert computes_half(TINY_XL, HALF, upcast=False)
        assert computes_half(TINY, HALF, upcast=True)
        # It is said already, or there is nothing to say.
        assert not computes_half(TINY_XL, replace(HALF, vae_float32=True), upcast=True)
        assert not computes_half(TINY_XL, ExportOptions("fp16"), upcast=True)


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_overflow_is_told_from_an_error(error: float) -> None:
    with pytest.raises(ExportError, match="give --vae-fp32"):
        check("the vae decoder", error, 1e-2, "give --vae-fp32")
    with pytest.raises(ExportError, match="Please report the model"):
        check("the vae decoder", 0.5, 1e-2, "give --vae-fp32")
    assert check("the vae decoder", 1e-3, 1e-2, "give --vae-fp32") == 1e-3
