"""Energy cross attention: the float64 reference against its maths."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import SAME, Array, Feed, cases, make_case, properties, reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ebca.errors import ParameterError
from ebca.plugins.energy_attention import (
    GUIDED_VARIANTS,
    TENSOR_DOCS,
    VARIANTS,
    EnergyAttentionResult,
    check_weights,
    energy_attention,
    signature,
    tie_matrix,
)

RESULTS = ("out", "g", "energy_attn", "energy_norm", "maps")


def assert_same(a: EnergyAttentionResult, b: EnergyAttentionResult) -> None:
    for name in RESULTS:
        assert_allclose(getattr(a, name), getattr(b, name), err_msg=name, **SAME)


# ---- properties of the reference


@properties
@given(case=cases, data=st.data())
def test_permuting_editorial_contexts_permutes_their_steps(case: Feed, data: st.DataObject) -> None:
    S = case["k"].shape[1]
    order = [0, *data.draw(st.permutations(range(1, S)))]
    per_context = ("k", "v", "weights", "gamma_attn", "gamma_norm", "mask", "bias", "token_groups")
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
    N, d, G = case["q"].shape[1], case["q"].shape[2] // 2, case["bias"].shape[2]
    extra = make_case(seed, B=B, S=1, T=T, N=N, d=d, G=G)
    per_context = ("k", "v", "gamma_attn", "gamma_norm", "mask", "bias", "token_groups")
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
        for name in RESULTS:
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
    for name in RESULTS:
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
    for plain, guided in zip(VARIANTS, GUIDED_VARIANTS, strict=True):
        assert guided == f"{plain}_guided"
        without, with_bias = signature(plain, 8, 40), signature(guided, 8, 40)
        assert [*with_bias.inputs] == [*without.inputs, "bias", "token_groups"]
        assert [*with_bias.outputs] == [*without.outputs, "maps"]
        assert with_bias.inputs["token_groups"].dtype == "int32" and {*with_bias.outputs} <= set(TENSOR_DOCS)
    assert sig.inputs["q"] == ("float32", ("batch", "positions", 320))
    for arguments in (("fused", 8, 40), ("update", 0, 40), ("update", 8, 0)):
        with pytest.raises(ParameterError):
            signature(*arguments)


def test_importing_the_operator_does_not_import_onnx() -> None:
    code = "import sys, ebca.plugins.energy_attention; sys.exit('onnx' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
