"""Intervals and paired comparisons, by hand and by simulation."""

import pytest

from hanmo.evaluation.results.statistics import compare, interval, mcnemar


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    low, high = interval([1.0] * 50 + [0.0] * 50)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    assert interval([1.0] * 7) == (1.0, 1.0)
    assert interval([0.25, 0.5, 0.75] * 20)[0] < 0.5 < interval([0.25, 0.5, 0.75] * 20)[1]


def test_mcnemar_by_hand() -> None:
    assert mcnemar(1, 1) == 1.0
    assert mcnemar(6, 1) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(400, 300) < 0.001


def test_comparison_of_right_and_wrong() -> None:
    found = compare([0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0])
    assert (found.better, found.worse, found.difference) == (3, 1, pytest.approx(2 / 6))
    assert found.p == pytest.approx(2 * (1 + 4) / 2**4)


def test_comparison_of_shares_flips_signs() -> None:
    far = compare([0.1] * 20, [0.6 + 0.01 * place for place in range(20)])
    assert far.p < 0.01 and far.interval[0] > 0.4
    near = compare([0.1, 0.5, 0.3, 0.6], [0.2, 0.4, 0.35, 0.55])
    assert near.p > 0.3
