"""Transformer-XL's attention as a CPU trains it quickly: a few heads at a time, whose scores fit its cache.

A tensor of all scores is far larger than a cache, and autograd passes over such tensors two dozen times in a step. Here
one is made, the one that the backward pass needs: the probabilities, negative where dropout took them.

Shape suffixes: B batch, H heads, K head width, q queries, S keys; of a piece 1 row of the batch and h heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hanmo.families.dropout import draw_kept, kept_scale
from hanmo.families.transformer_xl.relative import MASKED, hide_, moved_left, relative_scores, with_surplus

PIECE = 2**21  # scores of a piece: 4 MB in bf16


class PiecewiseAttention(torch.autograd.Function):
    """softmax(``relative_scores``, hidden by a mask), dropped with probability p, times the values: (B, H, q, K)."""

    @staticmethod
    def forward(
        ctx: Any,
        content_BHqK: Tensor,
        position_BHqK: Tensor | None,
        key_BHSK: Tensor,
        value_BHSK: Tensor,
        table_HSK: Tensor | None,
        mask: Tensor | None,
        p: float,
    ) -> Tensor:
        marked_BHqS = value_BHSK.new_empty(*content_BHqK.shape[:3], key_BHSK.shape[2])
        mixed_BHqK = torch.empty_like(content_BHqK)
        with torch.autocast("cpu", enabled=False):
            for rows, heads in _pieces(marked_BHqS):
                at = rows, heads
                position_1hqK = None if position_BHqK is None else position_BHqK[at]
                table_hSK = None if table_HSK is None else table_HSK[heads]
                scores_1hqS = relative_scores(content_BHqK[at], position_1hqK, key_BHSK[at], table_hSK)
                marked_1hqS = torch.softmax(hide_(scores_1hqS, _rows_of(mask, rows), MASKED), -1, out=marked_BHqS[at])
                kept_1hqS = marked_1hqS
                if p:
                    torch.where(draw_kept(marked_1hqS.shape, p), marked_1hqS, -marked_1hqS, out=marked_1hqS)
                    kept_1hqS = marked_1hqS.clamp_min(0)
                mixed_BHqK[at] = kept_1hqS @ value_BHSK[at]
        if p:
            mixed_BHqK *= kept_scale(p)
        ctx.save_for_backward(
            content_BHqK, position_BHqK, key_BHSK, value_BHSK, table_HSK, mask, marked_BHqS, mixed_BHqK
        )
        ctx.p = p
        return mixed_BHqK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of scores with probabilities P is P x (D - sum(P x D)), where D is that of the probabilities.

        The sum is that of the result times its gradient (Dao et al. 2022, arXiv:2205.14135).
        """
        content_BHqK, position_BHqK, key_BHSK, value_BHSK, table_HSK, mask, marked_BHqS, mixed_BHqK = ctx.saved_tensors
        sums_BHq1 = (mixed_BHqK.float() * gradients[0]).sum(-1, keepdim=True)
        gradient_BHqK = gradients[0] * kept_scale(ctx.p) if ctx.p else gradients[0]
        for_content, for_key, for_value = map(torch.empty_like, (content_BHqK, key_BHSK, value_BHSK))
        relative = table_HSK is not None
        if relative:
            surplus_HSK = with_surplus(table_HSK)
            for_position = torch.empty_like(position_BHqK)
            for_table = torch.zeros_like(surplus_HSK, dtype=torch.float32)
        for rows, heads in _pieces(marked_BHqS):
            at = rows, heads
            marked_1hqS, gradient_1hqK = marked_BHqS[at], gradient_BHqK[at]
            kept_1hqS = marked_1hqS.clamp_min(0) if ctx.p else marked_1hqS
            for_value[at] = kept_1hqS.transpose(2, 3) @ gradient_1hqK
            wanted_1hqS = (gradient_1hqK @ value_BHSK[at].transpose(2, 3)).float() - sums_BHq1[at]
            if ctx.p:  # what is negative was dropped: -P x -sum
                wanted_1hqS = torch.where(marked_1hqS > 0, wanted_1hqS, sums_BHq1[at])
            scores_1hqS = wanted_1hqS.mul_(marked_1hqS).to(marked_1hqS.dtype)
            scores_1hqS = hide_(scores_1hqS, _rows_of(mask, rows), 0.0)
            for_content[at] = scores_1hqS @ key_BHSK[at]
            for_key[at] = scores_1hqS.transpose(2, 3) @ content_BHqK[at]
            if relative:
                raw_1hqS = _moved_back(scores_1hqS)
                for_position[at] = raw_1hqS @ surplus_HSK[heads]
                for_table[heads] += (raw_1hqS.transpose(2, 3) @ position_BHqK[at])[0]
        scale = content_BHqK.shape[3] ** -0.5
        for_content *= scale
        for_key *= scale
        if not relative:
            return for_content, None, for_key, for_value, None, None, None
        for_position *= scale
        for_table = (for_table[:, :-1] * scale).to(table_HSK.dtype)
        return for_content, for_position, for_key, for_value, for_table, None, None


def _moved_back(scores_BHqS: Tensor) -> Tensor:
    """The gradient of ``moved_left``."""
    batch, heads, queries, columns = scores_BHqS.shape
    raw_BHqS = scores_BHqS.new_zeros(batch, heads, queries, columns + 1)
    moved_left(raw_BHqS).copy_(scores_BHqS)
    return raw_BHqS


def _pieces(scores_BHqS: Tensor) -> Iterator[tuple[slice, slice]]:
    """Row by row of the batch, some heads at a time."""
    batch, heads, queries, columns = scores_BHqS.shape
    some = max(PIECE // max(queries * columns, 1), 1)
    for row in range(batch):
        for first in range(0, heads, some):
            yield slice(row, row + 1), slice(first, first + some)


def _rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or len(mask) == 1 else mask[rows]
