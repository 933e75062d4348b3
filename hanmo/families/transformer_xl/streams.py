"""Documents laid end to end and cut into segments: the form in which the memory of one segment serves the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from hanmo.rows import IGNORE, Part, Row


def stream_rows(documents: Iterable[Sequence[Part]], length: int, stop_id: int) -> list[Row]:
    """One stream of documents as rows of ``length`` tokens; row i + 1 goes on where row i ends.

    ``stop_id`` is predicted after the last token of every document and never fed. The input ``reach`` (T,) says how
    far back each token sees: to the beginning of its document and at most ``length`` - 1 tokens, in or before the
    row. The last row is filled up with ``stop_id``, unscored; where the stream ends with a row, it is all filling,
    as published (its loss is 0 here, where the original's is no number).
    """
    ids: list[int] = []
    labels: list[int] = []
    reach: list[int] = []
    for parts in documents:
        document = [token for part in parts for token in part.ids]
        if not document:
            continue
        targets = [token if part.scored else IGNORE for part in parts for token in part.ids]
        ids += document
        labels += [*targets[1:], stop_id]
        reach += [min(age, length - 1) for age in range(len(document))]
    filling = length - len(ids) % length
    ids += [stop_id] * filling
    labels += [IGNORE] * filling
    before = reach[-1] + 1 if filling < length else 0
    reach += [min(before + age, length - 1) for age in range(filling)]
    tensors = (torch.tensor(values).split(length) for values in (ids, labels, reach))
    return [_row(*row) for row in zip(*tensors, strict=True)]


def _row(ids_T: torch.Tensor, labels_T: torch.Tensor, reach_T: torch.Tensor) -> Row:
    inputs = {"input_ids": ids_T, "attention_mask": torch.ones_like(ids_T), "reach": reach_T}
    return Row(inputs, labels_T, (labels_T != IGNORE).float(), end=len(ids_T) - 1)
