"""The ONNX graphs of energy attention against the float64 reference, on two engines."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.attention_cases import Array, Feed, make_case, reference
from numpy.testing import assert_array_equal

from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS, signature

Run = Callable[[Feed], list[Array]]

EVERY_VARIANT = (*VARIANTS, *GUIDED_VARIANTS)

SHAPES = {
    "sd_16x16": {"B": 2, "S": 1, "T": 77, "N": 256, "H": 8, "d": 40},
    "two_edits": {"B": 2, "S": 3, "T": 77, "N": 64, "H": 4, "d": 80},
    "odd_sizes": {"B": 3, "S": 2, "T": 13, "N": 35, "H": 5, "d": 24},
    "all_ones": {"B": 1, "S": 1, "T": 1, "N": 1, "H": 1, "d": 1},
}


def float32_limits(case: Feed, heads: int) -> dict[str, float]:
    """Largest error of each output relative to its largest element, for correct float32 arithmetic.

    A softmax turns an absolute error of its argument into a relative error of its result, and float32 knows
    an argument to eps times the magnitudes summed into it: |q||k|/sqrt(d) for scores, and the bias in `out`;
    norm_factor ||k||^2 for the norm term. Cancellation adds to it: between the weights in `out`, between the two terms
    in g. 4 covers the rounding of the products and sums themselves. energy_attn is a sum of T logsumexps, each known as
    well as its scores; energy_norm is a plain sum of squares, whose rounding grows with the root of its length.
    """
    eps = float(np.finfo(np.float32).eps)
    B, N, channels = case["q"].shape
    d = channels // heads
    size = np.linalg.norm(case["q"].reshape(B, N, heads, d), axis=-1).max()
    size *= np.linalg.norm(case["k"].reshape(*case["k"].shape[:3], heads, d), axis=-1).max() / np.sqrt(d)
    bias = 0.0 if case["bias"] is None else float(np.abs(case["bias"]).max())
    norm2 = float(np.square(case["k"]).sum(axis=-1).max())
    attn_energy = max(float(np.abs(reference(case, heads).energy_attn).max()), 1e-30)
    weights = np.abs(case["weights"]).sum(axis=1) / np.abs(case["weights"].sum(axis=1))
    parts = [reference(case, heads, gamma_norm=0.0).g, reference(case, heads, gamma_attn=0.0).g]
    terms = sum(float(np.abs(part).max()) for part in parts)
    cancelled = terms / max(float(np.abs(reference(case, heads).g).max()), 1e-30)
    return {
        "out": 4 * eps * (1 + size + bias) * float(weights.max()),
        "g": 4 * eps * (1 + size + float(case["norm_factor"]) * norm2) * cancelled,
        "energy_attn": 4 * eps * (1 + case["k"].shape[2] * size / attn_energy),
        "energy_norm": eps * (4 + float(np.sqrt(channels))),
        "maps": 4 * eps * (1 + size),
    }


def assert_model_agrees(run: Run, variant: str, case: Feed, heads: int) -> None:
    names = signature(variant, heads, 1)
    single = {name: x.astype(np.int32 if x.dtype.kind == "i" else np.float32) for name, x in case.items()}
    # Judge arithmetic, not rounding of inputs.
    exact: dict[str, Any] = {n: x if x.dtype.kind == "i" else x.astype(np.float64) for n, x in single.items()}
    exact |= {name: None for name in ("mask", "bias", "token_groups") if name not in names.inputs}
    expected = reference(exact, heads)
    limits = float32_limits(exact, heads)
    outputs = run({name: single[name] for name in names.inputs})
    for name, actual in zip(names.outputs, outputs, strict=True):
        wanted = getattr(expected, name)
        assert actual.shape == wanted.shape and actual.dtype == np.float32, name
        assert np.isfinite(actual).all(), name
        error = np.abs(actual - wanted).max() / np.abs(wanted).max()
        assert error <= limits[name], f"{name}: relative error {error:.2e} over {limits[name]:.2e}"


def onnxruntime_run(model: Any) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def sized_case(shape: str, **changes: Any) -> tuple[Feed, int, int]:
    sizes = {**SHAPES[shape], **changes}
    case = make_case(11, **sizes)
    # ||k||^2 is about 320 here: 0.05 keeps the norm softmax from being one-hot and the test from being blind.
    case["norm_factor"] = np.array(0.05)
    return case, sizes["H"], sizes["d"]


@pytest.mark.parametrize("variant", EVERY_VARIANT)
@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntime_agrees_with_the_reference(shape: str, variant: str) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case(shape)
    assert_model_agrees(onnxruntime_run(onnx_model.op_model(heads, head_dim, variant)), variant, case, heads)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_onnxruntime_is_safe_for_scores_in_the_hundreds(variant: str) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case("two_edits", scale=12.0)
    case["norm_factor"] = np.array(0.01)  # ||k||^2 is about 46000: the norm softmax's argument in the hundreds too
    scores = np.einsum("bnc,bstc->bsnt", case["q"], case["k"]) / np.sqrt(head_dim)
    assert np.abs(scores).max() > 500
    assert_model_agrees(onnxruntime_run(onnx_model.op_model(heads, head_dim, variant)), variant, case, heads)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
@pytest.mark.parametrize("shape", ["two_edits", "odd_sizes"])
def test_openvino_agrees_with_the_reference(shape: str, variant: str) -> None:
    openvino = pytest.importorskip("openvino")
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case(shape)
    core = openvino.Core()
    network = core.read_model(onnx_model.op_model(heads, head_dim, variant).SerializeToString())
    # The hint keeps float32 on machines where OpenVINO would choose bfloat16.
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})

    def run(feed: Feed) -> list[Array]:
        results = compiled(feed)
        return [results[name] for name in signature(variant, heads, head_dim).outputs]

    assert_model_agrees(run, variant, case, heads)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_model_matches_the_contract_and_has_standard_operators_only(variant: str) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    model = onnx_model.op_model(8, 40, variant)
    assert model.ir_version == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.functions and model.doc_string
    assert {node.domain for node in model.graph.node} == {""}

    def read(values: Any) -> dict[str, tuple[str, tuple[str | int, ...]]]:
        return {
            value.name: (
                {1: "float32", 6: "int32"}.get(value.type.tensor_type.elem_type, "other"),
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        }

    sig = signature(variant, 8, 40)
    assert list(read(model.graph.input).items()) == list(sig.inputs.items())
    assert list(read(model.graph.output).items()) == list(sig.outputs.items())
    assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))


def test_variants_compute_only_what_they_return() -> None:
    """A node with an unused result would cost time on backends that do not prune."""
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    for variant in EVERY_VARIANT:
        graph = onnx_model.op_model(2, 8, variant).graph
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        assert {name for node in graph.node for name in node.output} <= read, variant
        assert {value.name for value in graph.input} <= read, variant


@pytest.mark.parametrize("plain", VARIANTS)
@pytest.mark.parametrize("shape", ["two_edits", "odd_sizes"])
def test_a_bias_of_zero_changes_no_bit(shape: str, plain: str) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case(shape)
    case["bias"][:] = 0.0
    results = {}
    for variant in (plain, f"{plain}_guided"):
        names = signature(variant, heads, head_dim)
        feed = {name: case[name].astype(spec.dtype) for name, spec in names.inputs.items()}
        outputs = onnxruntime_run(onnx_model.op_model(heads, head_dim, variant))(feed)
        results[variant] = dict(zip(names.outputs, outputs, strict=True))
    for name, value in results[plain].items():
        assert_array_equal(results[f"{plain}_guided"][name], value, err_msg=name)


@pytest.mark.parametrize("groups", [1, 5])
def test_a_bias_of_minus_ten_thousand_hides_a_group_and_leaves_its_map(groups: int) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case("odd_sizes", G=groups)
    case["bias"][:] = 0.0
    case["bias"][:, :, 0] = -1e4
    case["token_groups"][:, :, :2] = [0, -1]
    run = onnxruntime_run(onnx_model.op_model(heads, head_dim, "attention_guided"))
    assert_model_agrees(run, "attention_guided", case, heads)
    feed = {n: case[n].astype(s.dtype) for n, s in signature("attention_guided", heads, head_dim).inputs.items()}
    hidden = feed["v"].copy()
    hidden[case["token_groups"] == 0] = 1e6  # values that must not matter
    assert_array_equal(run({**feed, "v": hidden})[0], run(feed)[0])
