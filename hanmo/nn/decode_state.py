"""The keys and values that a network keeps while decoding."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

BLOCK = 64  # columns by which the buffers grow


class DecodeState:
    """Keys and values of all layers for R rows. Column c of every layer belongs to the same token.

    A step calls ``grow`` once with the new tokens, then ``extend`` in every layer.
    """

    def __init__(self, layers: int):
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0  # columns in use
        self.has_padding = False  # whether any column of any row is padding
        self._valid_RC: Tensor | None = None

    @property
    def valid_RC(self) -> Tensor:
        """(R, length) bool, False on the padding of prompts."""
        assert self._valid_RC is not None, "grow() comes before the first use"
        return self._valid_RC

    def grow(self, valid_Rq: Tensor) -> None:
        """Make room for q new columns; ``valid_Rq`` (R, q) bool or 0/1: True on real tokens."""
        valid_Rq = valid_Rq.bool()
        self._valid_RC = valid_Rq if self._valid_RC is None else torch.cat([self.valid_RC, valid_Rq], dim=1)
        self.length += valid_Rq.shape[1]
        self.has_padding |= not bool(valid_Rq.all())

    def extend(self, layer: int, key_RHqK: Tensor, value_RHqK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new columns of one layer; returns all its keys and values, (R, H, length, K) each."""
        new = slice(self.length - key_RHqK.shape[2], self.length)
        self.keys[layer] = keys = _with_room(self.keys[layer], key_RHqK, self.length)
        self.values[layer] = values = _with_room(self.values[layer], value_RHqK, self.length)
        keys[:, :, new], values[:, :, new] = key_RHqK, value_RHqK
        return keys[:, :, : self.length], values[:, :, : self.length]

    def keep_last(self, columns: int) -> None:
        dropped = self.length - columns
        if dropped <= 0:
            return
        self._valid_RC = self.valid_RC[:, dropped:]
        self.keys = [None if key is None else key[:, :, dropped : self.length] for key in self.keys]
        self.values = [None if value is None else value[:, :, dropped : self.length] for value in self.values]
        self.length = columns

    def take(self, rows: Tensor) -> DecodeState:
        """The state of the given rows (R',) int64, in that order, with repetitions; shares nothing with this state."""
        other = copy(self)
        other._valid_RC = self.valid_RC[rows]
        other.keys = [None if key is None else key[rows] for key in self.keys]
        other.values = [None if value is None else value[rows] for value in self.values]
        return other


def _with_room(buffer: Tensor | None, like_RHqK: Tensor, length: int) -> Tensor:
    if buffer is not None and buffer.shape[2] >= length:
        return buffer
    rows, heads, _, width = like_RHqK.shape
    columns = (length + BLOCK - 1) // BLOCK * BLOCK
    grown = like_RHqK.new_zeros(rows, heads, columns, width)
    if buffer is not None:
        grown[:, :, : buffer.shape[2]] = buffer
    return grown
