"""EVA's decoding state."""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from hanmo.nn.decode_state import DecodeState


class EvaState(DecodeState):
    """A state with cross-attention's keys and values, once for each of S sources, which R / S consecutive rows share."""

    def __init__(self, layers: int):
        super().__init__(layers)
        self.positions_RC = torch.empty(0)  # decoder positions of the columns
        self.cross: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer's cross-attention, (S, H, T, K)
        self.cross_bias_S11T = torch.empty(0)  # 0 at the real tokens of the sources and -inf at padding

    def take(self, rows: Tensor) -> EvaState:
        other = super().take(rows)
        assert isinstance(other, EvaState)
        other.positions_RC = self.positions_RC[rows]
        sources = len(self.cross_bias_S11T)
        per_source = len(self.positions_RC) // sources
        taken = [row // per_source for row in rows.tolist()]
        # The largest size of groups of rows with one source each.
        width = math.gcd(*(len(list(run)) for _, run in groupby(taken)))
        taken = taken[::width]
        if taken == list(range(sources)):
            other.cross, other.cross_bias_S11T = self.cross, self.cross_bias_S11T
        else:
            index = torch.tensor(taken, device=rows.device)
            other.cross = [(keys[index], values[index]) for keys, values in self.cross]
            other.cross_bias_S11T = self.cross_bias_S11T[index]
        return other
