"""Significance of the difference between two methods on the same prompts and seeds."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

_CONFIDENCE = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """Shares of success of two methods on the same n images.

    difference: other minus base, with its 95 % bootstrap interval [low, high] over images.
    gained, lost: images that only the other method, or only the base, gets right.
    p_value: McNemar's exact test, two-sided.
    """

    n: int
    base: float
    other: float
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float

    @property
    def p_text(self) -> str:
        """The p value as tables show it, such as "0.021" or "5e-09"."""
        return f"{self.p_value:.3f}" if self.p_value >= 0.001 else f"{self.p_value:.0e}"


def compare(base: np.ndarray, other: np.ndarray) -> Paired:
    """Compare two vectors [n] of successes (or shares in [0, 1]) for the same images."""
    a, b = np.asarray(base, float), np.asarray(other, float)
    difference = b - a
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    low = high = float(difference.mean())
    if np.ptp(difference) > 0:
        interval = stats.bootstrap(
            (difference,),
            np.mean,
            confidence_level=_CONFIDENCE,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(len(a), float(a.mean()), float(b.mean()), float(difference.mean()), low, high, gained, lost, p_value)


def share_interval(successes: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    found = np.asarray(successes, bool)
    return wilson(int(found.sum()), len(found))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of `successes` of n."""
    interval = stats.binomtest(successes, n).proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
