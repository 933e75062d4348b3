"""Checks that a network's results are finite, on values that are on the host already: no device is synchronised."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hanmo.errors import NotANumberError

LARGEST_FP16 = 65504


def require_finite(values: Iterable[float], network: Any) -> None:
    """Raise NotANumberError unless all logits, log-probabilities, rewards or scores are finite."""
    if not all(map(math.isfinite, values)):
        raise NotANumberError(_message(network))


def _message(network: Any) -> str:
    dtype = str(getattr(network, "dtype", "")).removeprefix("torch.")
    damaged = "its weights are damaged: hanmo inspect MODEL names the tensors"
    problem = f"{type(network).__name__} in {dtype} computes what is not a finite number (NaN or infinite)"
    if dtype == "float16":
        return (
            f"{problem}; float16 ends at {LARGEST_FP16:,}, and the model may go beyond: try --dtype bf16 or --dtype fp32. "
            f"If fp32 says the same, {damaged}"
        )
    if dtype == "float32":
        return f"{problem}; fp32 has room for any sound model, so {damaged}"
    return f"{problem}; try --dtype fp32. If that says the same, {damaged}"
