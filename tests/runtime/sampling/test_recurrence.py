"""The rows of a recurrence: the same numbers as its own loop, and the same bits as the same sums in plain Python."""

import numpy as np
import pytest

from ebca.runtime.sampling.recurrence import expand


def plain(of_latents: np.ndarray, of_noises: np.ndarray) -> list[float]:
    """The same operations in the same order, one number at a time: the order that the C++ library keeps too."""
    rows = [[1.0]]
    for i in range(len(of_latents)):
        row = [0.0] * (i + 2)
        for k in range(min(of_latents.shape[1], i + 1)):
            for j, value in enumerate(rows[i - k]):
                row[j] += float(of_latents[i, k]) * value
        for k in range(min(of_noises.shape[1], i + 1)):
            row[i + 1 - k] += float(of_noises[i, k])
        rows.append(row)
    return [value for row in rows[1:] for value in row]


@pytest.mark.parametrize("memory", [(1, 1), (2, 2), (1, 5), (4, 1), (8, 16)])
@pytest.mark.parametrize("m", [1, 2, 30])
def test_rows_have_the_bits_of_the_plain_sums(memory: tuple[int, int], m: int) -> None:
    rng = np.random.default_rng(m)
    of_latents, of_noises = (rng.uniform(-1, 1, (m, width)) for width in memory)
    got = expand(of_latents, of_noises)
    assert got.dtype == np.float64 and got.shape == (m * (m + 3) // 2,)
    assert got.tolist() == plain(of_latents, of_noises)


def test_rows_are_the_weights_of_start_and_noises_in_the_recurrence() -> None:
    m, rng = 40, np.random.default_rng(0)
    of_latents, of_noises = rng.uniform(-0.5, 0.5, (m, 2)), rng.standard_normal((m, 3))
    start, noises = rng.standard_normal(6), rng.standard_normal((m, 6))
    before, latents = [np.zeros(6), start], start
    packed = expand(of_latents, of_noises)
    for i in range(m):
        latents = of_latents[i, 0] * before[-1] + of_latents[i, 1] * before[-2]
        for k in range(min(3, i + 1)):
            latents = latents + of_noises[i, k] * noises[i - k]
        before.append(latents)
        row = packed[i * (i + 3) // 2 :][: i + 2]
        # Both are float64, and differ in the order of their sums.
        assert np.allclose(row[0] * start + row[1:] @ noises[: i + 1], latents, rtol=1e-12, atol=1e-12)


def test_what_lies_before_the_start_does_not_matter() -> None:
    of_latents, of_noises = np.ones((3, 3)), np.ones((3, 3))
    expected = expand(of_latents, of_noises)
    for i, k in ((0, 1), (0, 2), (1, 2)):
        of_latents[i, k] = of_noises[i, k] = np.nan
    assert np.array_equal(expand(of_latents, of_noises), expected)


def test_coefficients_that_overflow_are_not_finite_and_not_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    packed = expand(np.full((3, 1), 1e200), np.ones((3, 1)))
    assert packed[0] == 1e200 and np.isinf(packed[2]) and not recwarn.list
