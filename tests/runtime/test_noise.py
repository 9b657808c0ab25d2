"""Seeds give PyTorch's numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebca.errors import ParameterError
from ebca.runtime.noise import NormalStream, randn

# Two units in the last place of values up to 5.8, because PyTorch uses its own float32 sine and cosine.
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
    """torch.randn(16) and torch.randn(4) with seed 0, as a check without PyTorch."""
    np.testing.assert_allclose(randn(16, 0)[:4], LARGE_SEED_0, rtol=0, atol=LIMIT)
    np.testing.assert_allclose(randn(4, 0), SMALL_SEED_0, rtol=0, atol=LIMIT)


LARGE_SEED_0 = [-1.1258398, -1.1523602, -0.2505786, -0.4338788]
SMALL_SEED_0 = [1.5409961, -0.2934289, -2.1787894, 0.5684313]


def test_numpy_integers_are_seeds_and_numpys_global_state_is_not_changed() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    assert np.array_equal(randn(20, np.int64(3)), randn([20], 3))
    assert np.array_equal(before, np.random.get_state()[1])


# --- consecutive draws


def consecutive_draws(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**63), 2**64 - 1), st.lists(st.integers(0, 40), min_size=2, max_size=8))
def test_consecutive_draws_equal_those_of_one_torch_generator(seed: int, sizes: list[int]) -> None:
    stream = NormalStream(seed)
    for size, expected in zip(sizes, consecutive_draws([(size,) for size in sizes], seed), strict=True):
        got = stream.randn(size)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=LIMIT)


def test_the_second_value_of_a_pair_is_kept_for_the_next_small_draw() -> None:
    """PyTorch keeps it even across large and empty draws."""
    shapes = [(3,), (16,), (0,), (2, 4, 5), (1,), (1,), (17,), (5,)]
    stream = NormalStream(7)
    for shape, expected in zip(shapes, consecutive_draws(shapes, 7), strict=True):
        got = stream.randn(shape)
        assert got.shape == shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=LIMIT)


def test_streams_are_independent() -> None:
    first, second = NormalStream(1), NormalStream(1)
    mixed = [(first.randn(5), second.randn(5)) for _ in range(3)]
    assert all(np.array_equal(a, b) for a, b in mixed)
    assert not np.array_equal(mixed[0][0], mixed[1][0])


def test_a_refused_shape_consumes_no_values() -> None:
    stream = NormalStream(3)
    with pytest.raises(ParameterError, match="shape is"):
        stream.randn((2, -1))
    assert np.array_equal(stream.randn((2, 3)), randn((2, 3), 3))


# --- refusals


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "3", None])
def test_other_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ParameterError, match="seed is"):
        randn(4, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(-1,), (2.5,), "ab", None, 1.0])
def test_other_shapes_are_refused(shape: object) -> None:
    with pytest.raises(ParameterError, match="shape is"):
        randn(shape, 0)  # type: ignore[arg-type]
