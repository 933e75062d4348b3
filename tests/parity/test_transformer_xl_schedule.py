"""Learning rates at the recorded steps."""

from typing import Any

import pytest

from hanmo.training.schedules import factor
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("transformer_xl")
CASES = load(PARITY / "transformer_xl" / "train" / "lr_schedule.json")


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(value) for value in c["args"].values()))
def test_learning_rates(case: dict[str, Any]) -> None:
    args = case["args"]
    style, warmup, end = args["decay_style"], args["warmup_iter"], args["num_iters"]
    cosine = style == "cosine"  # only the cosine has a bound in the original
    for step, rate in case["lr_at"]:
        ours = args["start_lr"] * factor(style, step, warmup, end, args["decay_ratio"] if cosine else 0.0, cosine)
        assert ours == pytest.approx(rate, rel=1e-12, abs=0), step
