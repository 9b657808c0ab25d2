"""Seeds give PyTorch's numbers."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebca.errors import ParameterError
from ebca.runtime.random import randn

# Values reach 5.8: two units in the last place, for PyTorch's own vectorised float32 sine and cosine.
LIMIT = 1e-6

SEEDS = [0, 1, 42, 1234, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1, -1, -5, -(2**31), -(2**63)]


def reference(shape: int | tuple[int, ...], seed: int) -> np.ndarray:
    torch = pytest.importorskip("torch")
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_torch_for_every_small_size(seed: int) -> None:
    for size in range(50):
        got = randn(size, seed)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, reference(size, seed), rtol=0, atol=LIMIT)


@pytest.mark.parametrize(
    "shape", [(1, 4, 64, 64), (2, 4, 96, 64), (1, 4, 17, 13), (3, 5, 7), (2**20 + 5,), (1, 1, 3), (), (0, 4)]
)
def test_equals_torch_for_shapes(shape: tuple[int, ...]) -> None:
    got = randn(shape, 7)
    assert got.shape == shape
    np.testing.assert_allclose(got, reference(shape, 7), rtol=0, atol=LIMIT)


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 300))
def test_equals_torch_for_any_seed_and_size(seed: int, size: int) -> None:
    np.testing.assert_allclose(randn(size, seed), reference(size, seed), rtol=0, atol=LIMIT)


def test_known_values_without_torch() -> None:
    """torch.randn(16 and 4) at seed 0, so the stream is pinned where PyTorch is not installed."""
    np.testing.assert_allclose(randn(16, 0)[:4], LARGE_SEED_0, rtol=0, atol=LIMIT)
    np.testing.assert_allclose(randn(4, 0), SMALL_SEED_0, rtol=0, atol=LIMIT)


LARGE_SEED_0 = [-1.1258398, -1.1523602, -0.2505786, -0.4338788]
SMALL_SEED_0 = [1.5409961, -0.2934289, -2.1787894, 0.5684313]


def test_numpy_integers_are_seeds_and_the_global_state_is_left_alone() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    assert np.array_equal(randn(20, np.int64(3)), randn([20], 3))
    assert np.array_equal(before, np.random.get_state()[1])


def test_large_sizes_are_vectorised() -> None:
    begin = time.perf_counter()
    randn((16, 4, 128, 128), 1)
    # Ten milliseconds here; a loop over the million values would take seconds.
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "3", None])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ParameterError, match="seed is"):
        randn(4, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(-1,), (2.5,), "ab", None, 1.0])
def test_bad_shape(shape: object) -> None:
    with pytest.raises(ParameterError, match="shape is"):
        randn(shape, 0)  # type: ignore[arg-type]
