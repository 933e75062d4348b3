"""Relative positions: the sinusoid table, scores of q queries with S keys (the last q are the queries' own), the mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MASKED = -10000.0  # replaces a masked score; a query that sees nothing then attends equally to everything


class SinusoidTable(nn.Module):
    """Rows of sines, then cosines, of distance x inverse frequency. The frequencies are part of a checkpoint."""

    inv_freq: Tensor

    def __init__(self, width: int, half: bool):
        super().__init__()
        self.width = width
        self.precision = torch.float16 if half else torch.float32
        self.register_buffer("inv_freq", self.initial())

    def initial(self) -> Tensor:
        return 1 / 10000 ** (torch.arange(0, self.width, 2).float() / self.width)

    def forward(self, columns: int, dtype: torch.dtype) -> Tensor:
        """(columns, D) for the distances columns - 1 … 0."""
        distances_S = torch.arange(columns - 1, -1, -1, device=self.inv_freq.device)
        angles = distances_S.to(self.precision)[:, None] * self.inv_freq.to(self.precision)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidTable:
        kept = self.inv_freq
        super()._apply(fn, recurse)
        if not kept.is_meta and self.inv_freq.dtype != kept.dtype:
            self.inv_freq = kept.to(self.inv_freq.device)  # in bf16 the angles of large distances would be noise
        return self


def relative_scores(
    content_BHqK: Tensor, position_BHqK: Tensor | None, key_BHSK: Tensor, table_HSK: Tensor | None
) -> Tensor:
    """Scaled scores (B, H, q, S): content queries with keys, plus position queries with position keys if given.

    ``table_HSK`` runs from distance S - 1 to 0. Columns after a row's own are meaningless and must be masked.
    """
    scale = content_BHqK.shape[3] ** -0.5
    if position_BHqK is None or table_HSK is None:
        return content_BHqK @ key_BHSK.transpose(2, 3) * scale
    moved_BHqS = _by_key(position_BHqK, table_HSK)
    moved_NqS, content_NqK, key_NSK = (x.flatten(0, 1) for x in (moved_BHqS, content_BHqK, key_BHSK))
    scores_NqS = torch.baddbmm(moved_NqS, content_NqK, key_NSK.transpose(1, 2), beta=scale, alpha=scale)
    return scores_NqS.unflatten(0, content_BHqK.shape[:2])


def position_scores(position_BHqK: Tensor, table_HSK: Tensor) -> Tensor:
    """The part of ``relative_scores`` that positions add, which attention off the CPU adds as it would a mask."""
    return _by_key(position_BHqK, table_HSK) * position_BHqK.shape[3] ** -0.5


def _by_key(position_BHqK: Tensor, table_HSK: Tensor) -> Tensor:
    """Products of position queries with the position keys of each key's distance, (B, H, q, S)."""
    if position_BHqK.shape[2] == 1:  # nothing to shift, and no need to copy the table
        return position_BHqK @ table_HSK.transpose(1, 2)
    return moved_left(position_BHqK @ with_surplus(table_HSK).transpose(1, 2))


def with_surplus(table_HSK: Tensor) -> Tensor:
    """The table with one more row of zeros, for ``moved_left``."""
    return nn.functional.pad(table_HSK, (0, 0, 0, 1))


def moved_left(raw: Tensor) -> Tensor:
    """A view (B, H, q, S) by key of contiguous scores (B, H, q, S + 1) by distance.

    Row i is moved left by q - 1 - i, so that its column j has the distance S - q + i - j.
    """
    queries, columns = raw.shape[2], raw.shape[3] - 1
    return raw.flatten(2)[..., queries - 1 :][..., : queries * columns].unflatten(-1, (queries, columns))


def hide_(scores_BHqS: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Write a value, in place, where a mask (B or 1, 1, q, S) is false."""
    return scores_BHqS if mask is None else scores_BHqS.masked_fill_(~mask, value)


def visible(
    queries: int,
    columns: int,
    span: int,
    attention_mask: Tensor | None,
    reach_BT: Tensor | None,
    device: torch.device,
) -> Tensor:
    """The mask (B or 1, 1, q, S) bool: True on those of the last S tokens that each of the last q sees.

    ``span``: the largest number of earlier tokens that a query sees; ``reach_BT`` the same of each query.
    """
    if attention_mask is not None and attention_mask.dim() > 2:
        mask = attention_mask[..., -columns:].bool()
        return mask if mask.dim() == 4 else mask[:, None]
    rows_q = torch.arange(columns - queries, columns, device=device)
    distance_qS = rows_q[:, None] - torch.arange(columns, device=device)
    mask = ((distance_qS >= 0) & (distance_qS <= span))[None, None]
    if reach_BT is not None:
        mask = mask & (distance_qS <= reach_BT[:, None, :, None])
    if attention_mask is not None:
        valid_BS = attention_mask[:, -columns:].bool()
        valid_BS = nn.functional.pad(valid_BS, (columns - valid_BS.shape[1], 0), value=True)
        mask = mask & valid_BS[:, None, None]
    return mask
