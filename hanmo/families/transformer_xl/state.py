"""The memory in decoding: keys and values instead of hidden states."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hanmo.nn.decode_state import BLOCK, DecodeState


class MemoryState(DecodeState):
    """Keys and values of the last ``span`` tokens and the position keys of all distances so far."""

    def __init__(self, layers: int, span: int):
        super().__init__(layers)
        self.span = span
        self.position_keys: list[Tensor | None] = [None] * layers

    def grow(self, valid_Rq: Tensor) -> None:
        if self.length >= self.span + BLOCK:  # a block at a time, so that copies are rare
            self.keep_last(self.span)
        super().grow(valid_Rq)

    def columns(self, queries: int) -> int:
        """The number of columns that ``queries`` new tokens (already grown) can see, their own included."""
        return min(self.length, self.span + queries)

    def extend(self, layer: int, key_RHqK: Tensor, value_RHqK: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().extend(layer, key_RHqK, value_RHqK)
        first = self.length - self.columns(key_RHqK.shape[2])
        return keys[:, :, first:], values[:, :, first:]

    def positions(self, layer: int, columns: int, project: Callable[[int], Tensor]) -> Tensor:
        """Position keys (H, columns, K) of the distances columns - 1 … 0, projected once and kept."""
        kept_HSK = self.position_keys[layer]
        if kept_HSK is None or kept_HSK.shape[1] < columns:
            kept_HSK = self.position_keys[layer] = project((columns + BLOCK - 1) // BLOCK * BLOCK)
        return kept_HSK[:, kept_HSK.shape[1] - columns :]

    def _empty(self) -> MemoryState:
        other = MemoryState(len(self.keys), self.span)
        other.position_keys = self.position_keys  # the same for all rows, never changed in place
        return other
