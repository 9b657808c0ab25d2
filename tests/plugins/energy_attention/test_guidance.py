"""Guidance of energy attention in the float64 reference: a bias per group of tokens, and the groups' maps."""

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import SAME, Feed, cases, make_case, properties, reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ebca.errors import ParameterError
from ebca.plugins.energy_attention import check_guidance

OTHERS = ("g", "energy_attn", "energy_norm")


@properties
@given(case=cases)
def test_a_bias_changes_out_and_nothing_else(case: Feed) -> None:
    guided, plain = reference(case), reference(case, bias=None, token_groups=None)
    for name in OTHERS:
        assert_array_equal(getattr(guided, name), getattr(plain, name), err_msg=name)
    assert plain.maps.shape == (len(case["q"]), 0, case["q"].shape[1])
    zero = reference(case, bias=np.zeros_like(case["bias"]))
    assert_array_equal(zero.out, plain.out)
    assert_array_equal(zero.maps, guided.maps)


@properties
@given(case=cases)
def test_out_and_maps_are_attention_head_by_head(case: Feed) -> None:
    """Written out with loops, for every row, context, head, position and token."""
    B, N, channels = case["q"].shape
    S = case["k"].shape[1]
    G, d = case["bias"].shape[2], channels // 2
    out, maps = np.zeros((B, N, channels)), np.zeros((B, G, N))
    for b, s, h, n in np.ndindex(B, S, 2, N):
        part = slice(h * d, (h + 1) * d)
        scores = case["k"][b, s, :, part] @ case["q"][b, n, part] / np.sqrt(d)
        groups = case["token_groups"][b, s]
        added = np.array([0.0 if g < 0 else case["bias"][b, s, g, n] for g in groups])
        shares = np.exp(scores + added)
        weight = case["weights"][b, s] / case["weights"][b].sum()
        out[b, n, part] += weight * shares @ case["v"][b, s, :, part] / shares.sum()
        if s == 0:
            shares = np.exp(scores) / np.exp(scores).sum()
            for g in range(G):
                maps[b, g, n] += shares[groups == g].sum() / 2
    result = reference(case)
    assert_allclose(result.out, out, **SAME)
    assert_allclose(result.maps, maps, **SAME)


@properties
@given(case=cases, data=st.data())
def test_permuting_groups_permutes_their_maps(case: Feed, data: st.DataObject) -> None:
    G = case["bias"].shape[2]
    order = data.draw(st.permutations(range(G)))
    place = np.array([*np.argsort(order), -1])  # of each old group; the last entry is that of -1
    moved = reference(case, bias=case["bias"][:, :, order], token_groups=place[case["token_groups"]])
    before = reference(case)
    assert_allclose(moved.out, before.out, **SAME)
    assert_array_equal(moved.maps, before.maps[:, order])


@properties
@given(case=cases)
def test_maps_of_all_tokens_sum_to_one_and_an_empty_group_has_none(case: Feed) -> None:
    G = case["bias"].shape[2]
    groups = np.broadcast_to(np.arange(case["k"].shape[2]) % G, case["token_groups"].shape)
    bias = np.pad(case["bias"], ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=7.0)
    maps = reference(case, bias=bias, token_groups=groups).maps
    assert_allclose(maps.sum(axis=1), 1.0, **SAME)
    assert_array_equal(maps[:, G], 0.0)


@properties
@given(case=cases, shift=st.floats(-1e4, 1e4))
def test_a_bias_on_every_token_is_no_bias(case: Feed, shift: float) -> None:
    every = np.zeros_like(case["token_groups"])
    bias = np.full_like(case["bias"], shift)
    # A score beside 1e4 is accurate to 1e-12.
    plain = reference(case, bias=None, token_groups=None)
    assert_allclose(reference(case, bias=bias, token_groups=every).out, plain.out, 1e-9, 1e-9)


@properties
@given(case=cases)
def test_minus_ten_thousand_hides_the_tokens_of_a_group(case: Feed) -> None:
    """At every second position; the others, and the group's map, are as they were."""
    hidden = case["bias"] * 0
    hidden[:, :, 0, ::2] = -1e4
    groups = case["token_groups"].copy()
    groups[:, :, 0] = -1  # one token stays
    result = reference(case, bias=hidden, token_groups=groups)
    other = case["v"].copy()
    other[groups == 0] += 1.0
    changed = reference(case, v=other, bias=hidden, token_groups=groups)
    assert_array_equal(changed.out[:, ::2], result.out[:, ::2])
    plain = reference(case, bias=None, token_groups=None)
    assert_array_equal(result.out[:, 1::2], plain.out[:, 1::2])
    assert_array_equal(result.maps, reference(case, token_groups=groups).maps)


def changed(array: Any, place: tuple[int, ...], value: float) -> Any:
    array = array.copy()
    array[place] = value
    return array


GROUPS = np.zeros((2, 3, 5), np.int64)
BIAS = np.zeros((2, 3, 2, 12), np.float32)


@pytest.mark.parametrize(
    ("bias", "groups", "message"),
    [
        (BIAS[0], GROUPS, r"bias has shape \(3, 2, 12\); pass \[batch, contexts, groups, positions\]"),
        (BIAS[:, :, :0], GROUPS, "at least one group"),
        (BIAS, GROUPS[:1], r"token_groups have shape \(1, 3, 5\).*batch 2 and contexts 3"),
        (BIAS, GROUPS[0], r"token_groups have shape \(3, 5\)"),
        (BIAS, GROUPS.astype(np.float32), "token_groups are float32; pass integers"),
        (BIAS, changed(GROUPS, (1, 2, 4), 2), r"token 4 of row 1, context 2 is in group 2; use 0\.\.1"),
        (BIAS, changed(GROUPS, (0, 1, 3), -2), "token 3 of row 0, context 1 is in group -2"),
        (changed(BIAS, (1, 0, 1, 7), np.nan), GROUPS, "bias is nan for row 1, context 0, group 1, position 7"),
        (changed(BIAS, (0, 0, 0, 0), -np.inf), GROUPS, r"bias is -inf for row 0.*within -10000\.\.10000"),
        (changed(BIAS, (0, 0, 0, 0), 1.1e4), GROUPS, "bias is 11000 for row 0"),
    ],
)
def test_a_bias_and_groups_that_do_not_fit_are_named(bias: Any, groups: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_guidance(bias, groups)
    with pytest.raises(ParameterError, match=message):
        reference(make_case(0), bias=bias, token_groups=groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "half given; pass both"),
        ({"token_groups": None}, "half given; pass both"),
        ({"bias": np.zeros((2, 3, 2, 11))}, r"bias has shape \(2, 3, 2, 11\); it must be \(2, 3, 2, 12\)"),
        ({"bias": np.zeros((1, 3, 2, 12)), "token_groups": GROUPS[:1]}, "bias has shape"),
        ({"token_groups": GROUPS[:, :, :4]}, r"token_groups has shape \(2, 3, 4\); it must be \(2, 3, 5\)"),
    ],
)
def test_guidance_that_does_not_fit_the_attention_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        reference(make_case(0), **changes)
    check_guidance(BIAS, GROUPS - 1)
