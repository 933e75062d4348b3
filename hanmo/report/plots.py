"""The geometry of plots, in per cent of their frame, and the format of numbers on pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Point = tuple[float, float]


class Dot(NamedTuple):
    x: float
    y: float
    across: float  # distance from the frame's left edge
    down: float  # and from its top


@dataclass(frozen=True)
class Plot:
    lines: dict[str, list[Dot]]
    x_ticks: list[Point]  # place in per cent, value
    y_ticks: list[Point]


def plot(lines: Mapping[str, Sequence[Point]], from_zero: bool, share: bool) -> Plot | None:
    """The plot of lines by name, without points that are not finite; None if no point is left.

    An axis whose values are all of type int counts: its ticks are whole.
    """
    finite = {name: [point for point in line if all(map(math.isfinite, point))] for name, line in lines.items()}
    points = [point for line in finite.values() for point in line]
    if not points:
        return None
    left, right = _range([x for x, _ in points], margin=0.0)
    low, high = _range([y for _, y in points] + [0] * from_zero + [0, 1] * share, margin=0.05)
    low = 0.0 if from_zero and not any(y < 0 for _, y in points) else low
    whole = [all(isinstance(value, int) for value in values) for values in zip(*points, strict=True)]

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    def down(y: float) -> float:
        return 100 * (high - y) / (high - low)

    return Plot(
        {name: [Dot(x, y, across(x), down(y)) for x, y in line] for name, line in finite.items()},
        [(across(x), x) for x in ticks(left, right, 6, whole[0])],
        [(down(y), y) for y in ticks(low, high, 5, whole[1])],
    )


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers from low to high, roughly ``about`` of them, a step of 1, 2 or 5 times a power of ten apart.

    ``whole``: no fractions, even if fewer numbers are left.

    >>> ticks(0, 10, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    assert high > low, (low, high)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        around = 0.5 if isinstance(low, int) or low == 0 else abs(low) / 2
        return low - around, high + around
    # Numbers that are nearly the same would differ in digits for which there is no room beside the frame.
    margin *= max(high - low, 0.2 * max(abs(low), abs(high)))
    return low - margin, high + margin


def number(value: Any) -> str:
    """A value as text: numbers with 4 digits, whole ones with thousands separators, None as a dash.

    >>> number(3.14159), number(12345), number(None)
    ('3.142', '12,345', '–')
    """
    if value is None:
        return "–"
    if not is_number(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return {"nan": "not a number", "inf": "∞", "-inf": "−∞"}[str(value)]
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.2e}"
    return f"{value:,.{max(min(3 - size, 4), 0)}f}"


def fact(value: Any) -> str:
    """A setting as text: numbers in up to 6 digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(fact, value)) or "none"
    return number(value)


def tick(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.6g}"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
