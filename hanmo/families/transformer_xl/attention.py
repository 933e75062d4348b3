"""Transformer-XL's attention for training on a CPU: a few heads at a time, whose scores fit the cache.

A tensor of all scores is far larger than a cache, and autograd passes over such tensors two dozen times in a step. Here
only the one that the backward pass needs is made: the probabilities, negative where dropout removed them.

Shape suffixes: K head width, q queries, S keys; of a piece 1 row of the batch, h heads and some queries.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hanmo.families.transformer_xl.relative import MASKED, hide_, moved_left, relative_scores, with_surplus
from hanmo.nn.cpu.layers import draw_kept, kept_scale

Slices = tuple[slice, slice, slice]  # of the batch, the heads, and the queries or keys

PIECE = 2**21  # scores of a piece: 4 MB in bf16
BLOCK = 128  # queries of a piece, if later columns are hidden from all of them


class PiecewiseAttention(torch.autograd.Function):
    """softmax(``relative_scores``, hidden by a mask), dropped with probability p, times the values: (B, H, q, K)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
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
        batch, heads, queries, _ = content_BHqK.shape
        blocks = _blocks(mask, queries, key_BHSK.shape[2])
        marked = [value_BHSK.new_empty(batch, heads, after - first, seen) for first, after, seen in blocks]
        mixed_BHqK = torch.empty_like(content_BHqK)
        with torch.autocast("cpu", enabled=False):
            for at, keys, mask_11qS, marked_1hqS in _pieces(blocks, marked, mask):
                position_1hqK = None if position_BHqK is None else position_BHqK[at]
                table_hSK = None if table_HSK is None else table_HSK[keys[1], -keys[2].stop :]
                scores_1hqS = relative_scores(content_BHqK[at], position_1hqK, key_BHSK[keys], table_hSK)
                torch.softmax(hide_(scores_1hqS, mask_11qS, MASKED), -1, out=marked_1hqS)
                kept_1hqS = marked_1hqS
                if p:
                    torch.where(draw_kept(marked_1hqS.shape, p), marked_1hqS, -marked_1hqS, out=marked_1hqS)
                    kept_1hqS = marked_1hqS.clamp_min(0)
                mixed_BHqK[at] = kept_1hqS @ value_BHSK[keys]
        if p:
            mixed_BHqK *= kept_scale(p)
        ctx.save_for_backward(content_BHqK, position_BHqK, key_BHSK, value_BHSK, table_HSK, mask, mixed_BHqK, *marked)
        ctx.blocks, ctx.p = blocks, p
        return mixed_BHqK

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the scores is P x (D - sum(P x D)), with the probabilities P and their gradient D.

        The sum is that of the result times its gradient (Dao et al. 2022, arXiv:2205.14135).
        """
        content_BHqK, position_BHqK, key_BHSK, value_BHSK, table_HSK, mask, mixed_BHqK, *marked = ctx.saved_tensors
        sums_BHq1 = (mixed_BHqK.float() * gradients[0]).sum(-1, keepdim=True)
        gradient_BHqK = gradients[0] * kept_scale(ctx.p) if ctx.p else gradients[0]
        for_content = torch.empty_like(content_BHqK)
        # Blocks add to these; bf16 would lose small terms.
        for_key, for_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key_BHSK, value_BHSK))
        relative = table_HSK is not None
        if relative:
            surplus_HSK = with_surplus(table_HSK)
            for_position = torch.empty_like(position_BHqK)
            for_table = torch.zeros_like(surplus_HSK, dtype=torch.float32)
        for at, keys, mask_11qS, marked_1hqS in _pieces(ctx.blocks, marked, mask):
            gradient_1hqK = gradient_BHqK[at]
            kept_1hqS = marked_1hqS.clamp_min(0) if ctx.p else marked_1hqS
            for_value[keys] += kept_1hqS.transpose(2, 3) @ gradient_1hqK
            wanted_1hqS = (gradient_1hqK @ value_BHSK[keys].transpose(2, 3)).float() - sums_BHq1[at]
            if ctx.p:  # negative ones were dropped: -P x -sum
                wanted_1hqS = torch.where(marked_1hqS > 0, wanted_1hqS, sums_BHq1[at])
            scores_1hqS = hide_(wanted_1hqS.mul_(marked_1hqS).to(marked_1hqS.dtype), mask_11qS, 0.0)
            for_content[at] = scores_1hqS @ key_BHSK[keys]
            for_key[keys] += scores_1hqS.transpose(2, 3) @ content_BHqK[at]
            if relative:
                raw_1hqS = _moved_back(scores_1hqS)
                distances = keys[1], slice(-keys[2].stop - 1, None)
                for_position[at] = raw_1hqS @ surplus_HSK[distances]
                for_table[distances] += (raw_1hqS.transpose(2, 3) @ position_BHqK[at])[0]
        scale = content_BHqK.shape[3] ** -0.5
        for_content *= scale
        for_key, for_value = (for_key * scale).to(key_BHSK.dtype), for_value.to(value_BHSK.dtype)
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


def _blocks(mask: Tensor | None, queries: int, columns: int) -> list[tuple[int, int, int]]:
    """Blocks of queries: (first, end, columns up to the last query's own).

    One block if a query sees later columns, or none at all: it then attends equally to every column.
    """
    whole = [(0, queries, columns)]
    if mask is None or not mask.any(-1).all():
        return whole
    ends = [*range(BLOCK, queries, BLOCK), queries]
    blocks = [(first, after, columns - queries + after) for first, after in zip([0, *ends], ends, strict=False)]
    ahead = any(bool(mask[:, :, first:after, seen:].any()) for first, after, seen in blocks)
    return whole if ahead else blocks


def _pieces(
    blocks: list[tuple[int, int, int]], scores: list[Tensor], mask: Tensor | None
) -> Iterator[tuple[Slices, Slices, Tensor | None, Tensor]]:
    """One row of the batch and some heads at a time: places of queries and keys, mask (1, 1, q, S), scores (1, h, q, S)."""
    for (first, after, seen), scores_BHqS in zip(blocks, scores, strict=True):
        batch, heads, queries, columns = scores_BHqS.shape
        some = max(PIECE // max(queries * columns, 1), 1)
        for row, head in product(range(batch), range(0, heads, some)):
            rows, part = slice(row, row + 1), slice(head, head + some)
            mask_11qS = None
            if mask is not None:
                mask_11qS = (mask if len(mask) == 1 else mask[rows])[:, :, first:after, :seen]
            yield (rows, part, slice(first, after)), (rows, part, slice(seen)), mask_11qS, scores_BHqS[rows, part]
