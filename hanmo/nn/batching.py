"""Groups texts into batches that change no text's result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Batching:
    """Which texts may share a batch. The defaults hold for our own networks; models of transformers are probed."""

    batch: Literal["any", "even", "one"] = "any"  # prompts decoded together: any, those of equal length, or single ones
    continues: bool = True  # one step may take several tokens
    rows: Literal["any", "one"] = "any"  # rows scored together
    slots: bool = True  # a decoding state may have ``fixed`` columns


def batching_of(network: Any) -> Batching:
    """The ``Batching`` of any network that has our ``prefill`` and ``step``."""
    return getattr(network, "batching", None) or Batching()


def batch_groups(network: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Split prompts of these lengths into batches that change no reply; a batch is a list of prompt indices."""
    how = batching_of(network).batch
    if how == "any" or len(lengths) == 1:
        return [list(range(len(lengths)))]
    if how == "one":
        return [[number] for number in range(len(lengths))]
    return [[number for number, one in enumerate(lengths) if one == length] for length in dict.fromkeys(lengths)]
