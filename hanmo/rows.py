"""Rows: the form of the examples of every family (docs/architecture.md), and batches of them.

Shape suffixes: B batch, R decoding rows, T input tokens, A predicting axis, P position dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hanmo.errors import UnsupportedError

T = TypeVar("T")
IGNORE = -100  # a label that is not scored


@dataclass(frozen=True)
class Part:
    """A piece of an example as token ids; ``scored``: the model is trained or evaluated on it."""

    ids: tuple[int, ...]
    scored: bool


@dataclass(frozen=True)
class Row:
    """One example, ready for the model.

    Attributes:
        inputs: keyword arguments of the model's forward without the batch axis, (T,), (A,), (P, A) or scalars; always
            with an ``attention_mask`` of ones over the input tokens.
        labels: (A,) int64, the token that the logits at each place must predict, or ``IGNORE``.
        weights: (A,) fp32, how much each place counts; zero where nothing is scored.
        end: index on A of the last real input, where a reward model reads its value.
        stream: rows of the same stream are consecutive segments of one text (families with memory).
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    end: int
    stream: int | None = None

    @classmethod
    def of(cls, inputs: dict[str, Tensor], labels: Sequence[int]) -> Row:
        """A row of scored tokens that count 1 each, with A up to the last real input."""
        labels_A = torch.tensor(labels, dtype=torch.long)
        return cls(inputs, labels_A, (labels_A != IGNORE).float(), end=len(labels_A) - 1)

    @property
    def size(self) -> int:
        """The number of places on all axes: rows of similar size need little padding in one batch."""
        return len(self.inputs["attention_mask"]) + len(self.labels)


@dataclass(frozen=True)
class Prompt:
    """A prompt's inputs of ``prefill``; token k after it (from 0) is fed at ``start + k * step``, both (P,) int64."""

    inputs: dict[str, Tensor]
    start: Tensor
    step: Tensor
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """The part of a conversation the model sees (``ids``) and all of it (``full_ids``, for score rules)."""

    ids: tuple[int, ...]
    full_ids: tuple[int, ...]


def token_inputs(ids: Sequence[int], prefix: str = "") -> dict[str, Tensor]:
    """``input_ids`` (T,) int64 and an ``attention_mask`` of ones; ``prefix`` goes before both names."""
    ids_T = torch.tensor(ids, dtype=torch.long)
    return {f"{prefix}input_ids": ids_T, f"{prefix}attention_mask": torch.ones_like(ids_T)}


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of ids with which both begin."""
    return next((place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))  # noqa: B905


def split_at_difference(rows: Sequence[Sequence[int]]) -> list[list[Part]]:
    """Rows as their common context and the scored rest of each; UnsupportedError if they have nothing in common."""
    shared = min(min(common_length(rows[0], row), len(row) - 1) for row in rows)
    if not shared:
        raise UnsupportedError(
            "nothing stands before the options, so that their first token would be predicted from nothing; "
            "let the text begin with something they share"
        )
    return [[Part(tuple(row[:shared]), False), Part(tuple(row[shared:]), True)] for row in rows]


def collate(rows: Sequence[Row], padding: dict[str, int]) -> dict[str, Tensor]:
    """Rows to one batch, padded on the right: the inputs by name, ``labels`` (B, A) and ``weights`` (B, A)."""
    batch = stack([row.inputs for row in rows], padding)
    batch["labels"] = torch.nn.utils.rnn.pad_sequence([row.labels for row in rows], True, IGNORE)
    batch["weights"] = torch.nn.utils.rnn.pad_sequence([row.weights for row in rows], True, 0.0)
    return batch


def stack(examples: Sequence[dict[str, Tensor]], padding: dict[str, int], left: bool = False) -> dict[str, Tensor]:
    """Inputs to one batch, padded on their last axis: rows on the right, prompts on the left, to end in one column."""

    def pad(tensor: Tensor, width: int, value: int) -> Tensor:
        missing = width - tensor.shape[-1]
        return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=value)

    batch = {}
    for name in examples[0]:
        tensors = [example[name] for example in examples]
        if tensors[0].dim():
            width = max(tensor.shape[-1] for tensor in tensors)
            tensors = [pad(tensor, width, padding.get(name, 0)) for tensor in tensors]
        batch[name] = torch.stack(tensors)
    return batch


def chunked(places: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive slices of ``size`` items; the last may be shorter."""
    return [places[first : first + size] for first in range(0, len(places), size)]
