"""Intervals of means and paired comparisons of two models on the same items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
INTERVAL = [(1 - 0.95) / 2, (1 + 0.95) / 2]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items."""

    difference: float  # mean of the second minus that of the first
    interval: tuple[float, float]  # 95 % bootstrap interval of the difference over items
    p: float  # two-sided; exact McNemar for right-or-wrong values, random sign flips for others
    better: int  # items on which the second is better
    worse: int


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over items."""
    return interval_of_means([values])


def interval_of_means(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The same of the mean of the groups' means; items are resampled within their group."""
    rng = np.random.default_rng(0)
    means = np.mean([_resampled(np.asarray(values, dtype=np.float64), rng) for values in groups], axis=0)
    lower, upper = np.quantile(means, INTERVAL)
    return float(lower), float(upper)


def _resampled(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of equally many items drawn with replacement, ``DRAWS`` times."""
    if len(np.unique(data)) > 2:
        return np.array([data[rng.integers(0, len(data), len(data))].mean() for _ in range(DRAWS)])
    low, high = data.min(), data.max()  # right or wrong: a resampled count is binomial
    return low + (high - low) * rng.binomial(len(data), (data == high).mean(), DRAWS) / len(data)


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare item by item; both in the same order."""
    assert len(first) == len(second) and first, "the same items, at least one"
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    whole = {0.0, 1.0} >= {*map(float, first), *map(float, second)}
    p = mcnemar(better, worse) if whole else _sign_flips(differences)
    return Comparison(float(differences.mean()), interval(differences.tolist()), p, better, worse)


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact probability that chance splits the differing items at least as unevenly.

    >>> mcnemar(0, 0), mcnemar(5, 0)
    (1.0, 0.0625)
    """
    count, fewer = better + worse, min(better, worse)
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1)]
    tail = math.fsum(math.exp(value - count * math.log(2)) for value in logs)
    return min(1.0, 2 * tail)


def _sign_flips(differences: np.ndarray) -> float:
    """Share of random sign flips whose mean is as far from zero, the observed one counted in."""
    rng = np.random.default_rng(0)
    observed = abs(differences.mean()) - 1e-12
    hits = sum(abs((differences * rng.choice((-1.0, 1.0), len(differences))).mean()) >= observed for _ in range(DRAWS))
    return (hits + 1) / (DRAWS + 1)
