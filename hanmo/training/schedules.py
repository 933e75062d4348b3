"""Learning rates of the original systems, as a factor of the peak rate.

transformers' own schedules stay available as ``trainer.lr_scheduler_type``.
Source: the recorded specifications (EVA section 12, Transformer-XL section 8).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["noam", "linear", "cosine", "constant", "exponential"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def factor(
    schedule: Schedule, step: int, warmup: float, decay: float, floor: float = 0.0, bounded: bool = True
) -> float:
    """What the peak learning rate is multiplied by at ``step``; 0 at step 0, which is the first update.

    Args:
        warmup: steps over which the rate rises from 0.
        decay: steps after the warm-up over which "linear" and "cosine" fall.
        floor: the factor that "cosine" falls to.
        bounded: stay there when a run goes on longer than planned. Some originals do not: "linear" turns negative
            and "cosine" rises again.
    """
    if step <= warmup:
        rise = step / warmup if warmup else 1.0
        return rise / math.sqrt(warmup) if schedule == "noam" and warmup else rise
    done = (step - warmup) / decay
    if bounded:
        done = min(1.0, done)
    if schedule == "noam":
        return 1 / math.sqrt(step)
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return floor + (1 - floor) * (math.cos(math.pi * done) + 1) / 2
    return 1.0  # the originals' "exponential" is constant


def published_warmup(ratio: float, batches: int, accumulation: int = 1) -> int:
    """Warm-up steps of the original for a share of ``batches``, the run's batches before accumulation."""
    return math.floor(ratio * batches / accumulation) + 1
