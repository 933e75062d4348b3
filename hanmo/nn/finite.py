"""Checks that a network's results, which are on the host already, are finite."""

import math
from collections.abc import Iterable
from typing import Any

from hanmo.errors import NotANumberError


def require_finite(values: Iterable[float], network: Any) -> None:
    """Raise NotANumberError unless all logits, log-probabilities, rewards or scores are finite."""
    if all(map(math.isfinite, values)):
        return
    dtype = str(getattr(network, "dtype", "")).removeprefix("torch.")
    advice = "try --dtype fp32. If that says the same,"
    if dtype == "float16":
        advice = "float16 ends at 65,504, and the model may go beyond: try --dtype bf16 or --dtype fp32. If fp32 says the same,"
    elif dtype == "float32":
        advice = "fp32 is enough for any sound model, so"
    raise NotANumberError(
        f"{type(network).__name__} in {dtype} computes what is not a finite number (NaN or infinite); {advice} its weights "
        "are damaged: hanmo inspect MODEL names the tensors"
    )
