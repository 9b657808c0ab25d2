"""Schedules equal those of the authors' code."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebca.errors import ParameterError
from ebca.runtime.conditioning.schedules import Schedule, resolve

f32 = np.float32


def test_constant() -> None:
    values = Schedule.constant(0.01).values(10, 11)
    assert values.dtype == np.float32
    assert values.tolist() == [f32(0.01)] * 11


@pytest.mark.parametrize(
    ("steps", "tau", "switch"), [(10, 0.2, 2), (10, 0.5, 5), (10, 0.0, 0), (7, 0.5, 3), (10, 1.0, 10)]
)
def test_step_and_reverse_step_switch_at_int_steps_tau(steps: int, tau: float, switch: int) -> None:
    evaluations = steps + 1
    late = Schedule.step(1.5, tau).values(steps, evaluations)
    early = Schedule.reverse_step(1.5, tau).values(steps, evaluations)
    assert late.tolist() == [0.0] * switch + [1.5] * (evaluations - switch)
    assert early.tolist() == [1.5] * switch + [0.0] * (evaluations - switch)


def test_switch_uses_the_authors_float_product() -> None:
    """int(50 * 0.58) is 28, not 29: the product is 28.999999999999996 in float64."""
    assert np.count_nonzero(Schedule.reverse_step(1.0, 0.58).values(50, 51)) == int(50 * 0.58) == 28


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_linear_is_torch_linspace(steps: int) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.linspace(0.01, 0.01 + 3e-4 * steps, steps + 1).numpy()
    np.testing.assert_allclose(Schedule.linear(0.01, 3e-4).values(steps, steps + 1), expected, rtol=2e-7)


def test_exponential() -> None:
    expected = [0.1 * 0.9**i for i in range(11)]
    np.testing.assert_allclose(Schedule.exponential(0.1, 0.9).values(10, 11), expected, rtol=1e-7)


@given(
    st.sampled_from(["constant", "step", "reverse_step", "linear", "exponential"]),
    st.floats(-10, 10),
    st.floats(0, 1),
    st.integers(1, 60),
)
def test_fewer_evaluations_are_a_prefix(kind: str, value: float, parameter: float, steps: int) -> None:
    schedule = Schedule(kind, value, 0.0 if kind == "constant" else parameter)  # type: ignore[arg-type]
    full = schedule.values(steps, steps + 1)
    assert full.shape == (steps + 1,)
    assert np.array_equal(schedule.values(steps, steps), full[:steps])


def test_resolve_accepts_numbers_sequences_and_schedules() -> None:
    assert resolve(0.5, 2, 3, "gamma_attn").tolist() == [0.5, 0.5, 0.5]
    assert resolve(f32(0.5), 2, 3, "gamma_attn").tolist() == [0.5, 0.5, 0.5]
    assert resolve([1, 2, 3], 2, 3, "gamma_attn").tolist() == [1, 2, 3]
    assert resolve(np.array([1.0, 2.0, 3.0]), 2, 3, "gamma_attn").tolist() == [1, 2, 3]
    assert resolve(Schedule.step(1.0, 0.5), 2, 3, "gamma_attn").tolist() == [0, 1, 1]
    assert resolve([1.0], 1, 1, "gamma_attn").dtype == np.float32


def test_the_error_about_a_wrong_length_names_the_expected_length() -> None:
    message = r"gamma_attn has 10 values, but pndm with 10 steps makes 11 evaluations; "
    with pytest.raises(ParameterError, match=message):
        resolve([0.1] * 10, 10, 11, "gamma_attn", scheduler="pndm")
    with pytest.raises(ParameterError, match="alpha has 1 values"):
        resolve([0.1], 10, 11, "alpha")


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [0.1, float("nan")],
        1e300,
        Schedule.exponential(1.0, 1e30),
        Schedule.exponential(0.0, 1e200),
    ],
)
def test_values_that_are_not_finite_are_refused(value: Any) -> None:
    with pytest.raises(ParameterError, match=r"gamma_norm: .*not a finite"):
        resolve(value, 2, 2 if isinstance(value, list) else 3, "gamma_norm")


@pytest.mark.parametrize("value", ["0.1", None, True, [[0.1, 0.2]], ["a"], ["0.1", "0.2"], [[1], [1, 2]], object()])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(ParameterError, match="gamma_norm is"):
        resolve(value, 2, 2, "gamma_norm")


@pytest.mark.parametrize("tau", [-0.1, 1.5, float("nan"), "0.5", None, True])
@pytest.mark.parametrize("make", [Schedule.step, Schedule.reverse_step])
def test_a_bad_tau_is_refused(make: Any, tau: Any) -> None:
    with pytest.raises(ParameterError, match="tau is"):
        make(0.1, tau)


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.exponential])
def test_a_bad_ratio_or_value_is_refused(make: Any) -> None:
    with pytest.raises(ParameterError, match="ratio is"):
        make(0.1, float("inf"))
    with pytest.raises(ParameterError, match="value is"):
        make(float("nan"), 0.5)
