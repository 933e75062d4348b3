"""Concatenated documents cut into segments, so that the memory of one segment serves the next."""

from collections.abc import Iterable, Sequence

import torch

from hanmo.rows import IGNORE, Part, Row, token_inputs


def stream_rows(documents: Iterable[Sequence[Part]], length: int, stop_id: int) -> list[Row]:
    """One stream of documents as rows of ``length`` tokens; row i + 1 continues row i.

    ``stop_id`` is predicted after the last token of every document and never an input. The input ``reach`` (T,) is how
    many tokens back each token sees, at most ``length`` - 1: to the beginning of its document, maybe in an earlier row.
    The last row is padded with unscored ``stop_id``; as published, it is all padding where the stream ends with a row
    (its loss is 0 here, and NaN in the original).
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
    padding = length - len(ids) % length
    ids += [stop_id] * padding
    labels += [IGNORE] * padding
    before = reach[-1] + 1 if padding < length else 0
    reach += [min(before + age, length - 1) for age in range(padding)]
    cuts = [slice(at, at + length) for at in range(0, len(ids), length)]
    return [Row.of({**token_inputs(ids[cut]), "reach": torch.tensor(reach[cut])}, labels[cut]) for cut in cuts]
