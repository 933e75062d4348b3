"""Learning rates of the original systems, as a factor of the peak rate.

Source: the recorded specifications (EVA section 12, Transformer-XL section 8).
"""

import math
from collections.abc import Callable
from typing import Literal

from transformers import TrainingArguments

Schedule = Literal["noam", "linear", "cosine", "constant", "exponential"]
RateFactor = Callable[[int, int], float]  # (step, steps) -> factor of the peak learning rate


def rate_factor(schedule: Schedule | None, args: TrainingArguments, published: bool) -> RateFactor | None:
    """The factor of a run; None leaves the learning rate to transformers.

    Published, "linear" and "cosine" fall over the run's batches, and with accumulation do not reach their end.
    """
    if schedule is None:
        return None

    def at(step: int, steps: int) -> float:
        warmup = args.warmup_steps if args.warmup_steps >= 1 else published_warmup(args.warmup_steps, steps)
        return factor(schedule, step, warmup, steps * args.gradient_accumulation_steps if published else steps)

    return at


def factor(
    schedule: Schedule, step: int, warmup: float, decay: float, floor: float = 0.0, bounded: bool = True
) -> float:
    """The factor of the peak learning rate at ``step``; 0 at step 0, the first update.

    Args:
        warmup: steps over which the rate rises from 0.
        decay: steps after the warm-up over which "linear" and "cosine" fall.
        floor: the factor that "cosine" falls to.
        bounded: stay at the end value afterwards. In some originals "linear" turns negative and "cosine" rises again.
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
