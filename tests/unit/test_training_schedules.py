"""Learning-rate factors at places that can be computed by hand."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.training.schedules import Schedule, factor, published_warmup

SCHEDULES = get_args(Schedule)


@pytest.mark.parametrize(
    "schedule, step, expected",
    [
        ("linear", 0, 0.0), ("linear", 2, 0.5), ("linear", 4, 1.0), ("linear", 9, 0.5), ("linear", 99, 0.0),
        ("cosine", 4, 1.0), ("cosine", 9, 0.5), ("cosine", 14, 0.0), ("cosine", 99, 0.0),
        ("noam", 1, 1 / 8), ("noam", 4, 0.5), ("noam", 25, 0.2),
        ("constant", 2, 0.5), ("constant", 99, 1.0), ("exponential", 99, 1.0),
    ],
)  # fmt: skip
def test_by_hand(schedule: str, step: int, expected: float) -> None:
    assert factor(schedule, step, warmup=4, decay=10) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_a_floor_and_no_bound() -> None:
    assert factor("cosine", 14, 4, 10, floor=0.1) == pytest.approx(0.1)
    assert factor("cosine", 9, 4, 10, floor=0.1) == pytest.approx(0.55)
    assert factor("linear", 19, 4, 10, bounded=False) == pytest.approx(-0.5)
    assert factor("cosine", 24, 4, 10, bounded=False) == pytest.approx(1.0)


def test_without_warmup_the_first_step_is_the_peak() -> None:
    assert [factor(schedule, 0, 0, 10) for schedule in SCHEDULES] == [1.0] * len(SCHEDULES)  # type: ignore[arg-type]


def test_published_warmup() -> None:
    assert published_warmup(0.01, 1000) == 11
    assert published_warmup(0.1, 200, 4) == 6
    assert published_warmup(0, 50) == 1


@given(st.sampled_from(SCHEDULES), st.integers(0, 2000), st.integers(0, 500), st.integers(1, 1000))
def test_never_above_the_peak_nor_below_zero(schedule: str, step: int, warmup: int, decay: int) -> None:
    value = factor(schedule, step, warmup, decay)  # type: ignore[arg-type]
    assert math.isfinite(value)
    assert -1e-12 <= value <= 1


def test_the_floor_is_of_the_cosine_alone() -> None:
    """Two steps after the warm-up, of four: half way."""
    assert factor("linear", 12, 10, 4, floor=0.2) == pytest.approx(0.5)
    assert factor("cosine", 12, 10, 4, floor=0.2) == pytest.approx(0.6)
