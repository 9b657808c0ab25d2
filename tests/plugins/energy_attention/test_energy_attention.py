"""Energy cross attention: the float64 reference against its maths, and the ONNX graphs against the reference."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from ebca.errors import ParameterError
from ebca.plugins.energy_attention import (
    TENSOR_DOCS,
    VARIANTS,
    EnergyAttentionResult,
    check_weights,
    energy_attention,
    signature,
    tie_matrix,
)

Array = NDArray[Any]
Feed = dict[str, Array]
Run = Callable[[Feed], list[Array]]

# Reordered float64 sums differ by a few units of 1e-16 times the size of a softmax's argument, about 10 here.
SAME: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}

properties = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def make_case(
    seed: int, *, B: int = 2, S: int = 3, T: int = 5, N: int = 12, H: int = 2, d: int = 4, scale: float = 1.0
) -> Feed:
    """Random float64 inputs for the whole contract; the weights keep |sum w| / sum |w| at 1/5 or more."""
    rng = np.random.default_rng(seed)
    weights = np.ones((B, S))
    if S > 1:
        weights[:, 1:] = rng.uniform(-2 / 3, 2 / 3, (B, S - 1)) / (S - 1)
    return {
        "q": rng.standard_normal((B, N, H * d)) * scale,
        "k": rng.standard_normal((B, S, T, H * d)) * scale,
        "v": rng.standard_normal((B, S, T, H * d)),
        "weights": weights,
        "gamma_attn": rng.uniform(-1, 1, (B, S, T)),
        "gamma_norm": rng.uniform(-1, 1, (B, S)),
        "norm_factor": np.array(1.0),
        "tie": tie_matrix(B, S, B // 2).astype(np.float64),
        "mask": rng.uniform(0, 1, (B, S, N)),
    }


def reference(case: Feed, heads: int = 2, **changes: Any) -> EnergyAttentionResult:
    """The reference on a case, with some inputs replaced or (None) left out."""
    merged: dict[str, Any] = {**case, **changes}
    options = {name: value for name, value in merged.items() if name not in ("q", "k", "v") and value is not None}
    return energy_attention(merged["q"], merged["k"], merged["v"], heads=heads, **options)


def assert_same(a: EnergyAttentionResult, b: EnergyAttentionResult) -> None:
    for name in ("out", "g", "energy_attn", "energy_norm"):
        assert_allclose(getattr(a, name), getattr(b, name), err_msg=name, **SAME)


cases = st.builds(
    make_case,
    seed=st.integers(0, 2**32 - 1),
    B=st.integers(1, 3),
    S=st.integers(1, 4),
    T=st.integers(1, 7),
    N=st.integers(1, 20),
    d=st.integers(1, 6),
)


# ---- properties of the reference


@properties
@given(case=cases, data=st.data())
def test_permuting_editorial_contexts_permutes_their_steps(case: Feed, data: st.DataObject) -> None:
    S = case["k"].shape[1]
    order = [0, *data.draw(st.permutations(range(1, S)))]
    per_context = ("k", "v", "weights", "gamma_attn", "gamma_norm", "mask")
    moved = {**case, **{name: case[name][:, order] for name in per_context}}
    moved["tie"] = case["tie"][:, order][:, :, order]
    before, after = reference(case), reference(moved)
    assert_allclose(after.out, before.out, **SAME)
    for name in ("g", "energy_attn", "energy_norm"):
        assert_allclose(getattr(after, name), getattr(before, name)[:, order], err_msg=name, **SAME)


@properties
@given(case=cases, seed=st.integers(0, 2**32 - 1))
def test_weight_zero_equals_an_absent_context(case: Feed, seed: int) -> None:
    B, S, T, _ = case["k"].shape
    extra = make_case(seed, B=B, S=1, T=T, N=case["q"].shape[1], d=case["q"].shape[2] // 2)
    per_context = ("k", "v", "gamma_attn", "gamma_norm", "mask")
    grown = {**case, **{name: np.concatenate([case[name], extra[name]], axis=1) for name in per_context}}
    grown["weights"] = np.pad(case["weights"], ((0, 0), (0, 1)))
    grown["tie"] = np.broadcast_to(np.eye(S + 1), (B, S + 1, S + 1))
    alone, both = reference(case, tie=None), reference(grown)
    assert_allclose(both.out, alone.out, **SAME)
    assert_allclose(both.g[:, :S], alone.g, **SAME)


@properties
@given(case=cases)
def test_batch_equals_its_rows_one_by_one(case: Feed) -> None:
    whole = reference(case)
    for b in range(case["q"].shape[0]):
        single = reference({name: x if x.ndim == 0 else x[b : b + 1] for name, x in case.items()})
        for name in ("out", "g", "energy_attn", "energy_norm"):
            assert_allclose(getattr(single, name)[0], getattr(whole, name)[b], err_msg=name, **SAME)


@properties
@given(case=cases)
def test_mask_of_ones_equals_no_mask(case: Feed) -> None:
    assert_same(reference(case, mask=np.ones_like(case["mask"])), reference(case, mask=None))


@properties
@given(case=cases)
def test_mask_of_zeros_leaves_the_norm_term_and_touches_nothing_else(case: Feed) -> None:
    masked = reference(case, mask=np.zeros_like(case["mask"]))
    assert_same(masked, reference(case, gamma_attn=0.0))


@properties
@given(case=cases)
def test_zero_gammas_give_no_step(case: Feed) -> None:
    assert_array_equal(reference(case, gamma_attn=0.0, gamma_norm=0.0).g, 0.0)


@properties
@given(case=cases, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_step_is_linear_in_both_gammas(case: Feed, a: float, b: float) -> None:
    attn = reference(case, gamma_norm=0.0).g
    norm = reference(case, gamma_attn=0.0).g
    both = reference(case, gamma_attn=a * case["gamma_attn"], gamma_norm=b * case["gamma_norm"]).g
    assert_allclose(both, a * attn + b * norm, rtol=1e-10, atol=1e-10)


@properties
@given(case=cases)
def test_tied_rows_give_every_editorial_context_the_mean(case: Feed) -> None:
    B, S = case["weights"].shape
    free = reference(case, tie=None).g
    tied = reference(case, tie=tie_matrix(B, S, B)).g
    assert_allclose(tied[:, 0], free[:, 0], **SAME)
    # The tie matrix is float32, so 1/3 is off by 1e-8.
    if S > 1:
        assert_allclose(tied[:, 1:], np.broadcast_to(free[:, 1:].mean(1, keepdims=True), tied[:, 1:].shape), 1e-6, 1e-6)
        assert_array_equal(tied[:, 1:], np.broadcast_to(tied[:, 1:2], tied[:, 1:].shape))


@properties
@given(case=cases)
def test_one_context_is_plain_attention(case: Feed) -> None:
    q, k, v = case["q"], case["k"][:, 0], case["v"][:, 0]
    out = energy_attention(q, k[:, None], v[:, None], heads=2).out
    d = q.shape[2] // 2
    for b in range(q.shape[0]):
        for h in range(2):
            part = slice(h * d, (h + 1) * d)
            weights = np.exp(q[b, :, part] @ k[b, :, part].T / np.sqrt(d))
            expected = weights @ v[b, :, part] / weights.sum(axis=1, keepdims=True)
            assert_allclose(out[b, :, part], expected, **SAME)


@properties
@given(seed=st.integers(0, 2**32 - 1))
def test_scores_in_the_hundreds_stay_finite(seed: int) -> None:
    result = reference(make_case(seed, scale=30.0))
    for name in ("out", "g", "energy_attn", "energy_norm"):
        assert np.isfinite(getattr(result, name)).all(), name


# ---- the step is the energies' gradient


def numerical_gradient(energy: Callable[[Array], float], k: Array) -> Array:
    """Central differences in float64: error about step^2 from the series and 1e-16/step from rounding."""
    step = 1e-5
    gradient = np.zeros_like(k)
    for index in np.ndindex(*k.shape):
        delta = np.zeros_like(k)
        delta[index] = step
        gradient[index] = (energy(k + delta) - energy(k - delta)) / (2 * step)
    return gradient


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_term_descends_the_attention_energy(heads: int) -> None:
    """energy_attn averages over heads and carries 1/sqrt(d) inside, hence the factor heads * sqrt(d)."""
    case = make_case(3, B=1, S=1)
    q, k, v = case["q"], case["k"], case["v"]
    factor = heads * np.sqrt(q.shape[2] // heads)
    g = energy_attention(q, k, v, heads=heads, gamma_attn=1.0).g
    gradient = numerical_gradient(lambda x: factor * float(energy_attention(q, x, v, heads=heads).energy_attn[0, 0]), k)
    assert_allclose(g, -gradient, rtol=1e-6, atol=1e-8)


def test_norm_term_descends_the_norm_energy_at_the_papers_factor() -> None:
    case = make_case(4, B=1, S=1)
    q, k, v = case["q"], case["k"], case["v"]
    g = energy_attention(q, k, v, heads=2, gamma_norm=1.0, norm_factor=0.5).g
    gradient = numerical_gradient(lambda x: float(energy_attention(q, x, v, heads=2).energy_norm[0, 0]), k)
    assert_allclose(g, -gradient, rtol=1e-6, atol=1e-8)


def test_norm_energy_does_not_depend_on_the_norm_factor() -> None:
    case = make_case(5)
    assert_array_equal(reference(case, norm_factor=1.0).energy_norm, reference(case, norm_factor=0.5).energy_norm)


# ---- what is refused


@pytest.mark.parametrize(
    "weights",
    [
        [[1.0], [0.0]],
        [[1.0, 0.5], [1.0, -1.0]],
        [[1.0, 0.0], [1.0, -0.999]],
        [[1.0], [np.nan]],
        [[1.0], [np.inf]],
    ],
)
def test_weights_that_cancel_are_refused_with_their_row(weights: list[list[float]]) -> None:
    with pytest.raises(ParameterError, match="row 1"):
        check_weights(weights)
    case = make_case(0, S=len(weights[0]))
    with pytest.raises(ParameterError, match="row 1"):
        reference(case, weights=np.array(weights))


@pytest.mark.parametrize("weights", [[[1.0]], [[1.0, -1.3]], [[1.0, 1.3, -2.0], [1.0, 0.0, 0.0]]])
def test_usual_weights_pass(weights: list[list[float]]) -> None:
    check_weights(weights)


@pytest.mark.parametrize("weights", [1.0, [1.0], np.ones((2, 0))])
def test_weights_of_a_wrong_shape_are_refused(weights: Any) -> None:
    with pytest.raises(ParameterError, match="contexts"):
        check_weights(weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": np.zeros((2, 12))}, "q has shape"),
        ({"q": np.zeros((3, 12, 8))}, "batch or channels"),
        ({"v": np.zeros((2, 3, 6, 8))}, "v has shape"),
        ({"q": np.zeros((2, 0, 8))}, "empty"),
        ({"gamma_attn": np.zeros((2, 3, 4))}, "gamma_attn has shape"),
        ({"gamma_norm": np.zeros(7)}, "gamma_norm has shape"),
        ({"mask": np.zeros((2, 3, 11))}, "mask has shape"),
        ({"tie": np.zeros((2, 2, 2))}, "tie has shape"),
        ({"weights": np.ones((2, 4))}, "weights has shape"),
        ({"heads": 3}, "heads=3"),
    ],
)
def test_shapes_that_do_not_match_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        reference(make_case(0), **changes)


def test_tie_matrix_ties_the_first_rows_only() -> None:
    tie = tie_matrix(2, 3, 1)
    assert tie.dtype == np.float32
    assert_array_equal(tie[0], np.array([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]], np.float32))
    assert_array_equal(tie[1], np.eye(3, dtype=np.float32))
    for contexts in (1, 2):
        assert_array_equal(tie_matrix(1, contexts, 1)[0], np.eye(contexts, dtype=np.float32))


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (2, 2, 3), (2, 2, -1)])
def test_tie_matrix_refuses_impossible_sizes(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ParameterError):
        tie_matrix(*arguments)


def test_signature_grows_with_the_variant_and_refuses_others() -> None:
    smaller: set[str] = set()
    for variant in VARIANTS:
        sig = signature(variant, 8, 40)
        names = {*sig.inputs, *sig.outputs}
        assert smaller < names <= set(TENSOR_DOCS)
        smaller = names
    assert sig.inputs["q"] == ("float32", ("batch", "positions", 320))
    for arguments in (("fused", 8, 40), ("update", 0, 40), ("update", 8, 0)):
        with pytest.raises(ParameterError):
            signature(*arguments)


def test_importing_the_operator_does_not_import_onnx() -> None:
    code = "import sys, ebca.plugins.energy_attention; sys.exit('onnx' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the ONNX graphs against the reference

SHAPES = {
    "sd_16x16": {"B": 2, "S": 1, "T": 77, "N": 256, "H": 8, "d": 40},
    "two_edits": {"B": 2, "S": 3, "T": 77, "N": 64, "H": 4, "d": 80},
    "odd_sizes": {"B": 3, "S": 2, "T": 13, "N": 35, "H": 5, "d": 24},
    "all_ones": {"B": 1, "S": 1, "T": 1, "N": 1, "H": 1, "d": 1},
}


def float32_limits(case: Feed, heads: int) -> dict[str, float]:
    """Largest error of each output relative to its largest element, for correct float32 arithmetic.

    A softmax turns an absolute error of its argument into a relative error of its result, and float32 knows
    an argument to eps times the magnitudes summed into it: |q||k|/sqrt(d) for scores, norm_factor ||k||^2 for
    the norm term. Cancellation adds to it: between the weights in `out`, between the two terms in g. 4 covers
    the rounding of the products and sums themselves. energy_attn is a sum of T logsumexps, each known as well
    as its scores; energy_norm is a plain sum of squares, whose rounding grows with the root of its length.
    """
    eps = float(np.finfo(np.float32).eps)
    B, N, channels = case["q"].shape
    d = channels // heads
    size = np.linalg.norm(case["q"].reshape(B, N, heads, d), axis=-1).max()
    size *= np.linalg.norm(case["k"].reshape(*case["k"].shape[:3], heads, d), axis=-1).max() / np.sqrt(d)
    norm2 = float(np.square(case["k"]).sum(axis=-1).max())
    attn_energy = max(float(np.abs(reference(case, heads).energy_attn).max()), 1e-30)
    weights = np.abs(case["weights"]).sum(axis=1) / np.abs(case["weights"].sum(axis=1))
    parts = [reference(case, heads, gamma_norm=0.0).g, reference(case, heads, gamma_attn=0.0).g]
    terms = sum(float(np.abs(part).max()) for part in parts)
    cancelled = terms / max(float(np.abs(reference(case, heads).g).max()), 1e-30)
    return {
        "out": 4 * eps * (1 + size) * float(weights.max()),
        "g": 4 * eps * (1 + size + float(case["norm_factor"]) * norm2) * cancelled,
        "energy_attn": 4 * eps * (1 + case["k"].shape[2] * size / attn_energy),
        "energy_norm": eps * (4 + float(np.sqrt(channels))),
    }


def assert_model_agrees(run: Run, variant: str, case: Feed, heads: int) -> None:
    names = signature(variant, heads, 1)
    single = {name: x.astype(np.float32) for name, x in case.items()}
    exact = {name: x.astype(np.float64) for name, x in single.items()}  # judge arithmetic, not rounding of inputs
    if "mask" not in names.inputs:
        exact["mask"] = np.ones_like(exact["mask"])
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntime_agrees_with_the_reference(shape: str, variant: str) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case(shape)
    assert_model_agrees(onnxruntime_run(onnx_model.op_model(heads, head_dim, variant)), variant, case, heads)


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnxruntime_is_safe_for_scores_in_the_hundreds(variant: str) -> None:
    onnx_model = pytest.importorskip("ebca.plugins.energy_attention.onnx_model", exc_type=ImportError)
    case, heads, head_dim = sized_case("two_edits", scale=12.0)
    case["norm_factor"] = np.array(0.01)  # ||k||^2 is about 46000: the norm softmax's argument in the hundreds too
    scores = np.einsum("bnc,bstc->bsnt", case["q"], case["k"]) / np.sqrt(head_dim)
    assert np.abs(scores).max() > 500
    assert_model_agrees(onnxruntime_run(onnx_model.op_model(heads, head_dim, variant)), variant, case, heads)


@pytest.mark.parametrize("variant", VARIANTS)
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


@pytest.mark.parametrize("variant", VARIANTS)
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
                "float32" if value.type.tensor_type.elem_type == 1 else "other",
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
    for variant in VARIANTS:
        graph = onnx_model.op_model(2, 8, variant).graph
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        assert {name for node in graph.node for name in node.output} <= read, variant
        assert {value.name for value in graph.input} <= read, variant
