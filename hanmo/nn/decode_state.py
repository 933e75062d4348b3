"""The keys and values that a network keeps while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # columns by which the buffers grow


class DecodeState:
    """Keys and values of all layers for R rows. Column c of every layer belongs to the same token.

    A step calls ``grow`` once with the new tokens, then ``extend`` in every layer.
    """

    #: a row can attend to its own columns only: see ``settle``
    attends_alone = True

    def __init__(self, layers: int):
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0  # columns in use
        self.has_padding = False  # whether any column of any row is padding
        self._valid_RC: Tensor | None = None
        #: columns of each row, where every row attends to its own last columns only (``attend``); None: to all, masked
        self.own: list[int] | None = None
        #: (1,) int64, the newest column, in a state with ``fixed`` columns
        self.at: Tensor | None = None

    @property
    def valid_RC(self) -> Tensor:
        """(R, length) bool, False on the padding of prompts."""
        assert self._valid_RC is not None, "grow() comes before the first use"
        return self._valid_RC

    def grow(self, valid_Rq: Tensor) -> None:
        """Make room for q new columns; ``valid_Rq`` (R, q) bool or 0/1: True on real tokens."""
        if self.at is not None:
            self.at += 1
            self.valid_RC.index_fill_(1, self.at, True)
            return
        valid_Rq = valid_Rq.bool()
        self._valid_RC = valid_Rq if self._valid_RC is None else torch.cat([self.valid_RC, valid_Rq], dim=1)
        self.length += valid_Rq.shape[1]
        self.has_padding |= not bool(valid_Rq.all())

    def extend(self, layer: int, key_RHqK: Tensor, value_RHqK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new columns of one layer; returns all its keys and values, (R, H, length, K) each."""
        if self.at is not None:
            kept = self.keys[layer], self.values[layer]
            assert kept[0] is not None and kept[1] is not None, "a prompt has been read"
            return kept[0].index_copy_(2, self.at, key_RHqK), kept[1].index_copy_(2, self.at, value_RHqK)
        new = slice(self.length - key_RHqK.shape[2], self.length)
        self.keys[layer] = keys = with_room(self.keys[layer], key_RHqK, self.length)
        self.values[layer] = values = with_room(self.values[layer], value_RHqK, self.length)
        keys[:, :, new], values[:, :, new] = key_RHqK, value_RHqK
        return keys[:, :, : self.length], values[:, :, : self.length]

    def fixed(self, columns: int) -> DecodeState:
        """A copy with so many columns from the start, of which those behind the newest are invalid.

        A step of one token changes no shape and no address in it, so that it can be captured and replayed.
        """
        other = copy(self)
        other.at = torch.tensor([self.length - 1], device=self.device)
        other._valid_RC = torch.nn.functional.pad(self.valid_RC, (0, columns - self.length))
        other.keys = [None if key is None else widened(key[:, :, : self.length], columns) for key in self.keys]
        other.values = [
            None if value is None else widened(value[:, :, : self.length], columns) for value in self.values
        ]
        other.length, other.has_padding, other.own = columns, True, None
        return other

    def fits(self, other: Any) -> bool:
        """Whether ``load`` can take the other state, with room for a token, in a state with ``fixed`` columns."""
        return type(other) is type(self) and len(other.valid_RC) == len(self.valid_RC) and other.length < self.length

    def load(self, other: DecodeState) -> None:
        """Take over the content of a state that grows into ``fixed`` columns."""
        assert self.at is not None, "this state has fixed columns"
        self.at.fill_(other.length - 1)
        overwrite(self.valid_RC[:, : other.length], other.valid_RC)
        self.valid_RC[:, other.length :] = False
        for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            if mine is not None and theirs is not None:
                overwrite(mine[:, :, : other.length], theirs[:, :, : other.length])
                mine[:, :, other.length :] = 0  # as in ``put``

    def loose(self, length: int) -> DecodeState:
        """The first columns of a state with ``fixed`` ones as a state that grows; both see the same memory."""
        other = copy(self)
        other.at = None
        other._valid_RC, other.length = self.valid_RC[:, :length], length
        other.keys = [None if key is None else key[:, :, :length] for key in self.keys]
        other.values = [None if value is None else value[:, :, :length] for value in self.values]
        return other

    def keep_last(self, columns: int) -> None:
        dropped = self.length - columns
        if dropped <= 0:
            return
        self._valid_RC = self.valid_RC[:, dropped:]
        self.keys = [None if key is None else key[:, :, dropped : self.length] for key in self.keys]
        self.values = [None if value is None else value[:, :, dropped : self.length] for value in self.values]
        self.length = columns

    def settle(self, used: Sequence[int], alone: bool = False) -> None:
        """Before a step of one token: drop columns that no row uses any more, from time to time.

        ``used``: columns of each row, the last ones; 0 where its content does not matter. ``alone``: set ``own``.
        """
        longest = max(used)
        if self.length - longest >= BLOCK:
            self.keep_last(longest)
        self.has_padding |= any(0 < columns < self.length for columns in used)
        self.own = [columns + 1 for columns in used] if alone else None

    def joins(self, other: Any) -> bool:
        """Whether ``put`` can take over the other state's rows."""
        return type(other) is type(self)

    def put(self, rows: Sequence[int], other: DecodeState) -> None:
        """Replace these rows by the rows of another state; all rows end in the same column."""
        if other.length > self.length:
            self._prepend(other.length - self.length)
        index = torch.tensor(rows, device=self.valid_RC.device)
        columns = slice(self.length - other.length, self.length)
        self._valid_RC = self.valid_RC.index_fill(0, index, False)
        self._valid_RC[index, columns] = other.valid_RC
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for buffer, new in zip(mine, theirs, strict=True):
                if buffer is not None and new is not None:
                    buffer[index, :, : columns.start] = 0  # a NaN there would reach the row in spite of the mask
                    buffer[index, :, columns] = new[:, :, : other.length]

    def _prepend(self, columns: int) -> None:
        """Make room before all columns."""
        self._valid_RC = torch.nn.functional.pad(self.valid_RC, (columns, 0))
        pad = (0, 0, columns, -self.length % BLOCK)
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = torch.nn.functional.pad(buffer[:, :, : self.length], pad)
        self.length += columns

    @property
    def device(self) -> torch.device:
        return self.valid_RC.device

    @property
    def column_bytes(self) -> int:
        """Memory of one token of one row."""
        kept = [buffer for buffer in (*self.keys, *self.values) if buffer is not None]
        return sum(buffer.element_size() * buffer[0, :, 0].numel() for buffer in kept)

    def complete(self, tokens: int) -> bool:
        """Whether the state of a row holds all of its tokens: ``beginning`` is exact then."""
        return self.length == tokens and not self.has_padding

    def beginning(self, columns: int) -> DecodeState:
        """The state after the first tokens. Both may go on: what they share is written by neither."""
        other = copy(self)
        other._valid_RC, other.length = self.valid_RC[:, :columns], columns
        other.keys = [None if key is None else key[:, :, :columns] for key in self.keys]
        other.values = [None if value is None else value[:, :, :columns] for value in self.values]
        return other

    def take(self, rows: Tensor) -> DecodeState:
        """The state of the given rows (R',) int64, in that order, with repetitions; shares nothing with this state."""
        other = copy(self)
        other._valid_RC = self.valid_RC[rows]
        other.keys = [None if key is None else key[rows] for key in self.keys]
        other.values = [None if value is None else value[rows] for value in self.values]
        return other


def widened(kept_RHCK: Tensor, columns: int) -> Tensor:
    """A copy with so many columns, new ones behind the old."""
    made = kept_RHCK.new_zeros(*kept_RHCK.shape[:2], columns, kept_RHCK.shape[3])
    made[:, :, : kept_RHCK.shape[2]] = kept_RHCK
    return made


def overwrite(mine: Tensor, theirs: Tensor) -> None:
    """Copy a tensor into one that may share its memory."""
    if mine.data_ptr() == theirs.data_ptr() and mine.stride() == theirs.stride():
        return
    if mine.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr():
        theirs = theirs.clone()
    mine.copy_(theirs)


def with_room(buffer: Tensor | None, like_RHqK: Tensor, length: int) -> Tensor:
    """The buffer, or a larger one with its content, if it has fewer than ``length`` columns."""
    if buffer is not None and buffer.shape[2] >= length:
        return buffer
    rows, heads, _, width = like_RHqK.shape
    columns = (length + BLOCK - 1) // BLOCK * BLOCK
    grown = like_RHqK.new_zeros(rows, heads, columns, width)
    if buffer is not None:
        grown[:, :, : buffer.shape[2]] = buffer
    return grown


def attend(
    query_BHqK: Tensor,
    key_BHkK: Tensor,
    value_BHkK: Tensor,
    mask: Tensor | None,
    own: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """scaled_dot_product_attention; with ``own``, of each row alone to so many of its last keys, of which it sees all.

    A bool mask is not needed then; of one that is added to the scores each row has its last columns.
    """
    attention = torch.nn.functional.scaled_dot_product_attention
    if own is None:
        return attention(query_BHqK, key_BHkK, value_BHkK, attn_mask=mask, **options)
    added = None if mask is None or mask.dtype == torch.bool else mask.expand(len(own), -1, -1, -1)
    mixed = []
    for row, columns in enumerate(own):
        keys, values = (kept[row : row + 1, :, -columns:] for kept in (key_BHkK, value_BHkK))
        bias = None if added is None else added[row : row + 1, :, :, -columns:].contiguous()
        mixed.append(attention(query_BHqK[row : row + 1], keys, values, attn_mask=bias, **options))
    return torch.cat(mixed)
