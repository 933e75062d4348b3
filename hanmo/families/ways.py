"""In which company a network reads a text as it reads it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Ways:
    """The defaults are those of our own networks; transformers' models are asked by a probe.

    Attributes:
        batch: prompts that may be decoded together: "any", those of "even" length, or "one" at a time.
        continues: several tokens may be fed at once after a prompt.
        rows: rows that may be scored together: "any", or "one" at a time.
    """

    batch: Literal["any", "even", "one"] = "any"
    continues: bool = True
    rows: Literal["any", "one"] = "any"


def ways_of(network: Any) -> Ways:
    """Of any network that speaks our protocol."""
    return getattr(network, "ways", None) or Ways()


def together(network: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Prompts of these lengths, by number, as batches that change no reply."""
    how = ways_of(network).batch
    if how == "any" or len(lengths) == 1:
        return [list(range(len(lengths)))]
    if how == "one":
        return [[number] for number in range(len(lengths))]
    return [[number for number, one in enumerate(lengths) if one == length] for length in dict.fromkeys(lengths)]
