"""The interface between families and the decode loop: conventions of search, processing of scores.

Shape suffixes: R rows of the batch, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchConventions:
    """The conventions by which implementations of sampling and beam search differ. The defaults are ours.

    Attributes:
        first_beam_only: only the first beam is alive before the first step; otherwise all beams start equal.
        length: the length of a beam. "with_stop": generated ids with the stop token; "without_stop": without it;
            "with_prompt": the prompt's width and the generated ids without the stop token.
        lookahead: tokens added to the length in the test whether open beams can still win.
        stop_is_open: in that test, a beam that has just stopped counts as open.
        tie: relative difference up to which two scores are equal in that test.
        temperature_again: sampled beams divide their running scores by the temperature at every step.
        keeps_finished: finished beam searches stay in the batch, filled with padding.
        cut: the score of tokens that top-k or top-p leaves out.
    """

    first_beam_only: bool = True
    length: Literal["with_stop", "without_stop", "with_prompt"] = "with_stop"
    lookahead: int = 1
    stop_is_open: bool = False
    tie: float = 0.0
    temperature_again: bool = False
    keeps_finished: bool = False
    cut: float = float("-inf")


# Beam search up to transformers 4.38, by which the PanGu and GLM ports of 2023 decode.
TRANSFORMERS_4_31 = SearchConventions(length="with_prompt", stop_is_open=True)


class LogitsProcessor(Protocol):
    """Penalties and suppressed ids that depend on what has been generated. Called once per decoding step.

    Args:
        generated: the ids generated so far, for each of R rows, which are independent except by a published flaw.
        sources: for each row the index of the context it continues.
        scores_RV: fp32; changed in place and returned.
    """

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor: ...


def penalise(scores_RV: Tensor, ids: Sequence[Collection[int]], penalty: float) -> None:
    """Make the ids of each row less likely, in place: negative scores are multiplied by the penalty, others divided."""
    places = _places(ids, scores_RV.device)
    scores = scores_RV[places]
    scores_RV[places] = torch.where(scores < 0, scores * penalty, scores / penalty)


def suppress(scores_RV: Tensor, ids: Sequence[Collection[int]], score: float) -> None:
    """Give the ids of each row this score, in place."""
    if any(ids):
        scores_RV[_places(ids, scores_RV.device)] = score


def _places(ids: Sequence[Collection[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The row and the column of every id."""
    columns = np.fromiter(chain.from_iterable(ids), np.int64)
    rows = np.repeat(np.arange(len(ids)), [len(row_ids) for row_ids in ids])
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
