"""Which losses stop a run and which do not."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.training.divergence import FACTOR, MARGIN, STEPS, UNIFORM_LOSS, LossWatch


def stops_at(losses: Sequence[float]) -> int | None:
    """The step, from 1, at which a run of these losses is stopped."""
    watch = LossWatch()
    return next((step for step, loss in enumerate(losses, 1) if watch.diverged(step, loss)), None)


def learning(steps: int, start: float, end: float, noise: float, seed: int = 0) -> list[float]:
    """Losses that fall from ``start`` towards ``end`` by a power law, each off by some ``noise`` of its height."""
    drawn = random.Random(seed)
    return [(end + (start - end) * (1 + step / 20) ** -0.5) * math.exp(drawn.gauss(0, noise)) for step in range(steps)]


@pytest.mark.parametrize("height", [7.5, 50.0, 1e6])
def test_a_loss_that_goes_up_and_stays_there_stops_after_the_steps_that_spikes_are_given(height: float) -> None:
    before = learning(100, 10.8, 3.0, 0.02) + learning(200, 3.0, 3.0, 0.05)
    assert stops_at([*before, *[height] * 100]) == 300 + STEPS


def test_a_loss_that_explodes_at_once_stops() -> None:
    assert stops_at([2.5, 60.0, *[400.0] * 40]) == 1 + STEPS
    assert stops_at([10.8, *(10.8 * 1.3**step for step in range(1, 60))]) is not None


@pytest.mark.parametrize("start", [0.7, 2.5, 10.8, 40.0])
@pytest.mark.parametrize("noise", [0.02, 0.3, 0.6])
def test_a_run_that_learns_goes_on(start: float, noise: float) -> None:
    for seed in range(20):
        assert stops_at(learning(2000, start, start / 5, noise, seed)) is None, seed


def test_spikes_that_pass_go_on() -> None:
    losses = learning(2000, 10.8, 2.5, 0.02)
    for place in range(100, 2000, 150):
        losses[place : place + STEPS - 1] = [30.0] * (STEPS - 1)
    assert stops_at(losses) is None


def test_losses_near_nothing_may_double() -> None:
    assert stops_at([0.01] * 100 + [2.5] * 100) is None
    assert stops_at([0.01] * 100 + [3.5] * 100) == 100 + STEPS


@given(
    st.floats(0.0, 100.0),
    st.lists(st.floats(0.0, 1.0), min_size=STEPS, max_size=200),
)
def test_what_stays_within_the_limit_of_its_lowest_never_stops(low: float, heights: list[float]) -> None:
    limit = max(FACTOR * low, low + MARGIN)
    assert stops_at([low + height * (limit - low) for height in heights]) is None


@given(st.lists(st.floats(0.0, UNIFORM_LOSS), min_size=1, max_size=100))
def test_where_it_goes_far_above_all_that_was_it_stops(losses: list[float]) -> None:
    assert stops_at([*losses, *[FACTOR * UNIFORM_LOSS + MARGIN] * STEPS]) == len(losses) + STEPS
