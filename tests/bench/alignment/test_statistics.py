"""Paired comparisons against cases computed by hand."""

import numpy as np
import pytest
from scipy import stats

from ebca.bench.alignment.statistics import compare, share_interval


def test_equal_vectors_have_no_difference() -> None:
    same = np.array([True, False, True])
    paired = compare(same, same)
    assert (paired.difference, paired.low, paired.high, paired.p_value) == (0, 0, 0, 1)


def test_mcnemar_is_the_exact_test_of_the_discordant_pairs() -> None:
    base = np.array([True] * 70 + [False] * 30)
    other = np.array([True] * 65 + [False] * 5 + [True] * 15 + [False] * 15)
    paired = compare(base, other)
    assert (paired.gained, paired.lost, paired.n) == (15, 5, 100)
    # Twice the probability of 15 or more heads of 20.
    assert paired.p_value == pytest.approx(2 * stats.binom.sf(14, 20, 0.5))
    assert paired.difference == pytest.approx(0.10)
    # The normal interval of a paired difference: sqrt((b + c)/n - d^2) / sqrt(n).
    half = 1.96 * np.sqrt((20 / 100 - 0.01) / 100)
    assert paired.low == pytest.approx(0.10 - half, abs=0.015) and paired.high == pytest.approx(0.10 + half, abs=0.015)


def test_the_interval_has_its_coverage() -> None:
    """About 95 of 100 intervals contain the true value; 88 leaves three standard errors."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        base = rng.random(300) < 0.6
        other = np.where(rng.random(300) < 0.2, rng.random(300) < 0.75, base)
        paired = compare(base, other)
        held += paired.low <= 0.2 * 0.15 <= paired.high
    assert held >= 88


def test_share_interval() -> None:
    low, high = share_interval(np.array([True] * 9 + [False]))
    assert low == pytest.approx(0.596, abs=0.001) and high == pytest.approx(0.982, abs=0.001)
