"""Learning rates step by step against the recorded ones."""

from typing import Any

import pytest

from hanmo.training.schedules import factor, published_warmup
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("eva")
CASES = load(PARITY / "eva" / "lr_schedule.json")


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda c: f"{c['style']}-{c['warmup_ratio']}-{c['train_iters']}-{c['gradient_accumulation_steps']}",
)
def test_learning_rates(case: dict[str, Any]) -> None:
    iterations = case["train_iters"]
    warmup = published_warmup(case["warmup_ratio"], iterations, case["gradient_accumulation_steps"])
    rates = case["lr_after_n_scheduler_steps"]
    # The recordings go on past the end, where the original's formulas have no bound.
    ours = [case["lr"] * factor(case["style"], step, warmup, iterations, bounded=False) for step in range(len(rates))]
    assert ours == pytest.approx(rates, rel=1e-12, abs=0)
