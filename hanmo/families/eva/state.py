"""EVA's decoding state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from hanmo.nn.decode_state import BLOCK, DecodeState, overwrite


class EvaState(DecodeState):
    """A state with cross-attention's keys and values, once for each of S sources, which R / S consecutive rows share."""

    def __init__(self, layers: int):
        super().__init__(layers)
        self.positions_RC = torch.empty(0)  # decoder positions of the columns
        self.cross: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer's cross-attention, (S, H, T, K)
        self.cross_bias_S11T = torch.empty(0)  # 0 at the real tokens of the sources and -inf at padding
        self.own_source: list[int] | None = None  # tokens of each row's source, if every row has one and is ``alone``

    def place(self, positions_Rq: Tensor) -> None:
        """The positions of the columns that ``grow`` has made."""
        if self.at is None:
            self.positions_RC = torch.cat([self.positions_RC, positions_Rq], dim=1)
        else:
            self.positions_RC.index_copy_(1, self.at, positions_Rq)

    def fixed(self, columns: int) -> EvaState:
        other = super().fixed(columns)
        assert isinstance(other, EvaState)
        other.positions_RC = torch.nn.functional.pad(self.positions_RC, (0, columns - self.length))
        tokens = -(-self.cross_bias_S11T.shape[-1] // BLOCK) * BLOCK
        other._source_of_each_row()
        other._widen_sources(tokens)
        return other

    def fits(self, other: Any) -> bool:
        return super().fits(other) and other.cross_bias_S11T.shape[-1] <= self.cross_bias_S11T.shape[-1]

    def load(self, other: DecodeState) -> None:
        assert isinstance(other, EvaState)
        super().load(other)
        overwrite(self.positions_RC[:, : other.length], other.positions_RC)
        if other.cross is not self.cross:
            other._source_of_each_row()
            self._take_sources(slice(None), other)

    def loose(self, length: int) -> EvaState:
        other = super().loose(length)
        assert isinstance(other, EvaState)
        other.positions_RC = self.positions_RC[:, :length]
        return other

    def keep_last(self, columns: int) -> None:
        self.positions_RC = self.positions_RC[:, -columns:]
        super().keep_last(columns)

    def settle(self, used: Sequence[int], alone: bool = False) -> None:
        super().settle(used, alone)
        if alone and self.own_source is None:
            self._source_of_each_row()
            self.own_source = (self.cross_bias_S11T == 0).sum(-1).flatten().tolist()

    def put(self, rows: Sequence[int], other: DecodeState) -> None:
        assert isinstance(other, EvaState)
        self._source_of_each_row()
        other._source_of_each_row()
        super().put(rows, other)
        index = torch.tensor(rows, device=self.positions_RC.device)
        self.positions_RC[index, self.length - other.length :] = other.positions_RC
        self._widen_sources(other.cross_bias_S11T.shape[-1])
        self._take_sources(index, other)
        self.own_source = None

    def _prepend(self, columns: int) -> None:
        super()._prepend(columns)
        self.positions_RC = torch.nn.functional.pad(self.positions_RC, (columns, 0))

    def _widen_sources(self, tokens: int) -> None:
        """Make room for sources of so many tokens, before those that there are."""
        missing = tokens - self.cross_bias_S11T.shape[-1]
        if missing > 0:
            self.cross = [(_padded(keys, tokens), _padded(values, tokens)) for keys, values in self.cross]
            self.cross_bias_S11T = torch.nn.functional.pad(self.cross_bias_S11T, (missing, 0), value=-math.inf)

    def _take_sources(self, rows: Tensor | slice, other: EvaState) -> None:
        """Replace the sources of these rows by those of another state, which are as long or shorter."""
        new = other.cross_bias_S11T.shape[-1]
        for mine, theirs in zip(self.cross, other.cross, strict=True):
            for kept, taken in zip(mine, theirs, strict=True):
                kept[rows, :, : kept.shape[2] - new] = 0  # as in ``DecodeState.put``
                kept[rows, :, -new:] = taken
        self.cross_bias_S11T[rows] = -math.inf
        self.cross_bias_S11T[rows, ..., -new:] = other.cross_bias_S11T

    def _source_of_each_row(self) -> None:
        """Repeat sources that several rows share; the copies are this state's own."""
        times = len(self.positions_RC) // len(self.cross_bias_S11T)
        self.cross = [
            (keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)) for keys, values in self.cross
        ]
        self.cross_bias_S11T = self.cross_bias_S11T.repeat_interleave(times, 0)

    def take(self, rows: Tensor) -> EvaState:
        other = super().take(rows)
        assert isinstance(other, EvaState)
        other.positions_RC, other.own_source = self.positions_RC[rows], None
        sources = len(self.cross_bias_S11T)
        if (
            len(rows) == sources == len(self.positions_RC)
        ):  # each row has its own: nothing is to be found out on the host
            other.cross = [(keys[rows], values[rows]) for keys, values in self.cross]
            other.cross_bias_S11T = self.cross_bias_S11T[rows]
            return other
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


def _padded(kept_SHTK: Tensor, tokens: int) -> Tensor:
    """With columns before it, ``tokens`` in all."""
    return torch.nn.functional.pad(kept_SHTK, (0, 0, tokens - kept_SHTK.shape[2], 0))
