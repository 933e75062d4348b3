"""Decoding states of transformers models: a cache, or ids that are read again at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from hanmo.nn.decode_state import BLOCK, overwrite, widened, with_room


class GrowingLayer(DynamicLayer):
    """Keys and values in buffers that grow by blocks. transformers' own layer copies all of them for every token."""

    def __init__(self, layer: DynamicLayer, length: int | None = None):
        super().__init__()
        assert layer.keys is not None and layer.values is not None, "it has been written to"
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        self._buffers: tuple[Tensor | None, ...] = (None, None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before = self.get_seq_length()
        length = before + key_states.shape[2]
        kept = []
        for buffer, old, new in zip(self._buffers, (self.keys, self.values), (key_states, value_states), strict=True):
            buffer = with_room(old if buffer is None else buffer, new, length)
            buffer[:, :, before:length] = new
            kept.append(buffer)
        self._buffers = tuple(kept)
        self.keys, self.values = (buffer[:, :, :length] for buffer in kept)
        return self.keys, self.values

    def set(self, keys: Tensor, values: Tensor) -> None:
        """Replace the content."""
        self.keys, self.values, self._buffers = keys, values, (None, None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        assert self.keys is not None and self.values is not None, "it has been written to"
        self.set(self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx))


class FixedLayer(DynamicLayer):
    """Keys and values of so many columns from the start; new ones are written to column ``at``."""

    def __init__(self, layer: GrowingLayer, columns: int, at: Tensor):
        super().__init__()
        assert layer.keys is not None and layer.values is not None, "it has been written to"
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values, self._at = widened(layer.keys, columns), widened(layer.values, columns), at

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys.index_copy_(2, self._at, key_states), self.values.index_copy_(2, self._at, value_states)


class CachedState:
    """transformers' cache and the attention mask of its content; an encoder's output and its mask, if there is one.

    ``batch``: the rows that may share the state, as in ``Batching``.
    """

    attends_alone = False

    def __init__(
        self,
        cache: Any,
        mask_RC: Tensor,
        encoder: Any = None,
        encoder_mask_RT: Any = None,
        positions: bool = True,
        batch: str = "one",
    ):
        self.cache, self.mask_RC, self.positions, self.batch = cache, mask_RC, positions, batch
        self.encoder, self.encoder_mask_RT = encoder, encoder_mask_RT
        self.at: Tensor | None = None  # as in ``DecodeState``
        layers = getattr(cache, "layers", [])
        if type(cache) is DynamicCache and all(
            type(layer) is DynamicLayer and layer.is_initialized for layer in layers
        ):
            cache.layers = [GrowingLayer(layer) for layer in layers]

    @property
    def columns(self) -> Tensor:
        """A tensor (R, C) with a column for each token so far."""
        return self.mask_RC

    def take(self, rows: Tensor) -> CachedState:
        """As ``DecodeState.take``."""
        cache = _own_layers(self.cache)
        cache.reorder_cache(rows)
        return CachedState(cache, self.mask_RC[rows], *_encoder_rows(self, rows), self.positions, self.batch)

    @property
    def device(self) -> torch.device:
        return self.mask_RC.device

    @property
    def column_bytes(self) -> int:
        """As that of ``DecodeState``."""
        kept = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)] if self._grows else []
        return sum(tensor.element_size() * tensor[0, :, 0].numel() for tensor in kept)

    def complete(self, tokens: int) -> bool:
        """As ``DecodeState.complete``; never for caches that keep anything else than all keys and values."""
        return self._grows and self.encoder is None and self.mask_RC.shape[1] == tokens and bool(self.mask_RC.all())

    def beginning(self, columns: int) -> CachedState:
        """As ``DecodeState.beginning``."""
        cache = copy.copy(self.cache)
        cache.layers = []
        for layer in self.cache.layers:
            cache.layers.append(copy.copy(layer))
            cache.layers[-1].set(layer.keys[:, :, :columns], layer.values[:, :, :columns])
        return CachedState(cache, self.mask_RC[:, :columns], positions=self.positions, batch=self.batch)

    @property
    def length(self) -> int:
        return self.mask_RC.shape[1]

    def blocked(self, dtype: torch.dtype) -> Tensor:
        """In a state with ``fixed`` columns, after a new one: the mask (R, 1, 1, C) that is added to the scores."""
        assert self.at is not None
        self.at += 1
        self.mask_RC.index_fill_(1, self.at, 1)
        blocked_RC = torch.zeros(self.mask_RC.shape, dtype=dtype, device=self.device)
        return blocked_RC.masked_fill_(self.mask_RC == 0, torch.finfo(dtype).min)[:, None, None]

    def fixed(self, columns: int) -> CachedState:
        """As ``DecodeState.fixed``."""
        at, cache = torch.tensor([self.length - 1], device=self.device), copy.copy(self.cache)
        cache.layers = [FixedLayer(layer, columns, at) for layer in self.cache.layers]
        mask_RC = torch.nn.functional.pad(self.mask_RC, (0, columns - self.length))
        other = CachedState(cache, mask_RC, positions=self.positions, batch=self.batch)
        other.at = at
        return other

    def fits(self, other: Any) -> bool:
        """As ``DecodeState.fits``."""
        return isinstance(other, CachedState) and len(other.mask_RC) == len(self.mask_RC) and other.length < self.length

    def load(self, other: CachedState) -> None:
        """As ``DecodeState.load``."""
        assert self.at is not None, "this state has fixed columns"
        self.at.fill_(other.length - 1)
        overwrite(self.mask_RC[:, : other.length], other.mask_RC)
        self.mask_RC[:, other.length :] = 0
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            overwrite(mine.keys[:, :, : other.length], theirs.keys)
            overwrite(mine.values[:, :, : other.length], theirs.values)
            mine.keys[:, :, other.length :], mine.values[:, :, other.length :] = 0, 0

    def loose(self, length: int) -> CachedState:
        """As ``DecodeState.loose``."""
        cache = copy.copy(self.cache)
        cache.layers = [GrowingLayer(layer, length) for layer in self.cache.layers]
        return CachedState(cache, self.mask_RC[:, :length], positions=self.positions, batch=self.batch)

    def settle(self, used: Sequence[int], alone: bool = False) -> None:
        """As ``DecodeState.settle``; rows are never ``alone``."""
        spare = self.mask_RC.shape[1] - max(used)
        if spare >= BLOCK and self._grows:
            self.mask_RC = self.mask_RC[:, spare:]
            for layer in self.cache.layers:
                layer.set(layer.keys[:, :, spare:], layer.values[:, :, spare:])

    def joins(self, other: Any) -> bool:
        """As ``DecodeState.joins``: decoders with a plain cache, of any lengths or of equal ones as the model allows."""
        if not isinstance(other, CachedState) or not self._grows or not other._grows or self.encoder is not None:
            return False
        return self.batch == "any" or (self.batch == "even" and self.mask_RC.shape[1] == other.mask_RC.shape[1])

    @property
    def _grows(self) -> bool:
        return all(isinstance(layer, GrowingLayer) for layer in getattr(self.cache, "layers", [None]))

    def put(self, rows: Sequence[int], other: CachedState) -> None:
        """As ``DecodeState.put``."""
        index = torch.tensor(rows, device=self.mask_RC.device)
        columns, new = self.mask_RC.shape[1], other.mask_RC.shape[1]
        missing, first = max(new - columns, 0), max(columns - new, 0)
        self.mask_RC = torch.nn.functional.pad(self.mask_RC, (missing, 0)).index_fill(0, index, 0)
        self.mask_RC[index, first:] = other.mask_RC
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if missing:
                kept = (torch.nn.functional.pad(tensor, (0, 0, missing, 0)) for tensor in (mine.keys, mine.values))
                mine.set(*kept)
            mine.keys[index, :, :first], mine.values[index, :, :first] = 0, 0  # as in ``DecodeState.put``
            mine.keys[index, :, first:], mine.values[index, :, first:] = theirs.keys, theirs.values


def _own_layers(cache: Any) -> Any:
    """A copy whose layers can be reordered without touching the original's tensors."""
    new = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        new.self_attention_cache = _own_layers(cache.self_attention_cache)
        new.cross_attention_cache = _own_layers(cache.cross_attention_cache)
        new.is_updated = dict(cache.is_updated)
    else:
        new.layers = [_own_layer(layer) for layer in cache.layers]
    return new


def _own_layer(layer: Any) -> Any:
    """A copy of a layer; recurrent layers keep their states in dictionaries, which are copied too."""
    new = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(new, name, {key: item.clone() if isinstance(item, Tensor) else item for key, item in value.items()})
    return new


def _encoder_rows(state: Any, rows: Tensor) -> tuple[Any, Tensor | None]:
    if state.encoder is None:
        return None, None
    output = type(state.encoder)(last_hidden_state=state.encoder.last_hidden_state[rows])
    return output, state.encoder_mask_RT[rows]


class UncachedState:
    """For models without an exact cache: the ids (R, C) of every row, int64, padded on the right, and their numbers (R,)."""

    def __init__(self, ids_RC: Tensor, lengths_R: Tensor, encoder: Any = None, encoder_mask_RT: Tensor | None = None):
        self.ids_RC, self.lengths_R = ids_RC, lengths_R
        self.encoder, self.encoder_mask_RT = encoder, encoder_mask_RT

    @classmethod
    def of(cls, ids_RT: Tensor, mask_RT: Tensor, *encoder: Any) -> UncachedState:
        """The state of prompts that are padded on the left."""
        lengths_R = mask_RT.sum(1)
        columns = torch.arange(ids_RT.shape[1], device=ids_RT.device) + (ids_RT.shape[1] - lengths_R)[:, None]
        moved = cls(ids_RT.gather(1, columns % ids_RT.shape[1]), lengths_R, *encoder)
        moved.ids_RC *= moved._mask()
        return moved

    @property
    def columns(self) -> Tensor:
        return self.ids_RC

    def _mask(self) -> Tensor:
        return (torch.arange(self.ids_RC.shape[1], device=self.ids_RC.device) < self.lengths_R[:, None]).long()

    def extend(self, ids_Rq: Tensor) -> None:
        q = ids_Rq.shape[1]
        places_Rq = self.lengths_R[:, None] + torch.arange(q, device=ids_Rq.device)
        self.ids_RC = torch.nn.functional.pad(self.ids_RC, (0, q)).scatter(1, places_Rq, ids_Rq)
        self.lengths_R = self.lengths_R + q

    def logits(self, forward: Callable[..., Any], count: int) -> Tensor:
        """The logits after the last ``count`` tokens of every row, (R, count, V)."""
        if self.encoder is None:
            output = forward(input_ids=self.ids_RC, attention_mask=self._mask(), use_cache=False)
        else:
            fed = {"encoder_outputs": self.encoder, "attention_mask": self.encoder_mask_RT}
            output = forward(**fed, decoder_input_ids=self.ids_RC, use_cache=False)
        places_Rq = self.lengths_R[:, None] + torch.arange(-count, 0, device=self.ids_RC.device)
        return output.logits[torch.arange(len(places_Rq), device=places_Rq.device)[:, None], places_Rq]

    def take(self, rows: Tensor) -> UncachedState:
        return UncachedState(self.ids_RC[rows], self.lengths_R[rows], *_encoder_rows(self, rows))
