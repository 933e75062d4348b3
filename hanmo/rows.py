"""Rows: the one form that examples of every family take, and how rows become batches.

Whatever the architecture, an example is a Row: the model's inputs and, on the axis where the model predicts,
``labels[t]`` = the token that the logits at ``t`` must predict and ``weights[t]`` = how much it counts. Families settle
shifting, decoder starts, mask tokens and two-dimensional positions here, once; every stage after that is the same code
for all families.

Shape suffixes: B batch, R decoding rows, T input tokens, A predicting axis, P position dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hanmo.errors import UnsupportedError

IGNORE = -100  # a label that is not scored


@dataclass(frozen=True)
class Part:
    """A piece of an example as token ids; ``scored``: the model is to learn it, or is judged on it."""

    ids: tuple[int, ...]
    scored: bool


@dataclass(frozen=True)
class Row:
    """One example, ready for the model.

    Attributes:
        inputs: keyword arguments of the model's forward for one example, without the batch axis: (T,), (A,), (P, A)
            or scalars; always with an ``attention_mask`` of ones over the input tokens.
        labels: (A,) int64, ``IGNORE`` where nothing is scored.
        weights: (A,) fp32, zero where nothing is scored. 1 everywhere makes the loss a mean over tokens.
        end: index on A of the last real input, where a reward model reads its value.
        stream: rows of the same stream are consecutive segments of one text (families with memory), else None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    end: int
    stream: int | None = None

    @property
    def size(self) -> int:
        """Places on all axes: rows of similar size need little padding when they share a batch."""
        return len(self.inputs["attention_mask"]) + len(self.labels)


@dataclass(frozen=True)
class Prompt:
    """What generation starts from: the inputs of ``prefill`` for one example and how positions go on.

    The k-th new token (k = 0, 1, …) is fed at position ``start + k * step``, both (P,) int64.
    """

    inputs: dict[str, Tensor]
    start: Tensor
    step: Tensor
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """The part of a conversation the model sees (``ids``) and all of it (``full_ids``, for score rules)."""

    ids: tuple[int, ...]
    full_ids: tuple[int, ...]


def split_at_difference(rows: Sequence[Sequence[int]]) -> list[list[Part]]:
    """Ids that begin alike as a shared context and what each goes on with, at least one id each.

    Raises:
        UnsupportedError: they have nothing in common, so that the first id would be predicted from nothing.
    """
    shared, shortest = 0, min(map(len, rows))
    while shared < shortest - 1 and all(row[shared] == rows[0][shared] for row in rows):
        shared += 1
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
    """Inputs of several examples to one batch. Shorter ones are filled on their last axis, on the right or left.

    Training fills on the right; prompts are filled on the left, so that all rows end in the same column.
    """

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
