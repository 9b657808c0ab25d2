"""Whether a VAE computes in float16, and what is said where it cannot."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx_ir as ir

from ebca.engines.contract.accuracy import relative_l2
from ebca.errors import ExportError
from ebca.export.checkpoint.tiny import TINY
from ebca.export.checkpoint.tiny_xl import TINY_XL
from ebca.export.graph.component import write_component
from ebca.export.graph.cuda.expand import expand_fused
from ebca.export.graph.modules import vae_decoder_graph
from ebca.export.options import ExportOptions
from ebca.export.parity import check, run_graph
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


def test_one_that_computes_in_float32_has_a_graph_for_the_gpu(tmp_path: Path) -> None:
    """Its fused operators are written in standard ones to be run here: the order of sums differs."""
    graph = vae_decoder_graph(TINY_XL.build().vae)
    component = write_component(graph, tmp_path, "vae_decoder", half=True, for_gpu=True)
    model = ir.load(tmp_path / component.lowered["onnxruntime-cuda"])
    operators = {node.op_type for node in model.graph}
    assert {"GroupNorm", "MultiHeadAttention"} <= operators
    assert not operators & {"GroupNormalization", "InstanceNormalization", "Attention"}
    expand_fused(model)
    for node in model.graph:
        for value in node.outputs:
            # Where float16 would be rounded.
            value.type = None
    ir.save(model, tmp_path / "expanded.onnx")
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 12), np.float32)
    made, expected = (
        run_graph(tmp_path / name, {"latents": latents})["image"]
        for name in ("expanded.onnx", component.lowered["onnxruntime"])
    )
    assert relative_l2(made, expected) <= 1e-5
