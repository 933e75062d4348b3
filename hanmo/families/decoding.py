"""The interface between families and the decode loop: conventions of search, processing of scores."""

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

    ``lookahead``, ``stop_is_open`` and ``tie`` are for the test whether open beams can still win.
    """

    #: only the first beam is alive before the first step; otherwise all beams start equal
    first_beam_only: bool = True
    #: of a beam: its generated ids with or without the stop token; "with_prompt": without it, plus the prompt's width
    length: Literal["with_stop", "without_stop", "with_prompt"] = "with_stop"
    lookahead: int = 1  # tokens added to the length
    stop_is_open: bool = False  # a beam that has just stopped counts as open
    tie: float = 0.0  # relative difference up to which two scores are equal
    temperature_again: bool = False  # sampled beams divide their running scores by the temperature at every step
    keeps_finished: bool = False  # finished searches stay in the batch, filled with padding
    cut: float = float("-inf")  # the score of tokens that top-k or top-p leaves out


# Beam search up to transformers 4.38, which the PanGu and GLM ports of 2023 use.
TRANSFORMERS_4_31 = SearchConventions(length="with_prompt", stop_is_open=True)


class LogitsProcessor(Protocol):
    """Applies penalties and suppressed ids that depend on the ids generated so far, once per decoding step.

    ``sources``: for each row the index of its context. ``scores_RV``: fp32, changed in place and returned.
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
    """The row and the column of every id, in one copy to the device."""
    columns = np.fromiter(chain.from_iterable(ids), np.int64)
    rows = np.repeat(np.arange(len(ids)), [len(row_ids) for row_ids in ids])
    both_2N = torch.from_numpy(np.array([rows, columns])).to(device)
    return both_2N[0], both_2N[1]
