"""What is added to EVA's attention scores: the relative position bias and the masks.

Shape suffixes: B batch, H heads, q query positions, k key positions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

MAX_DISTANCE = 128  # relative distances from here on share the last bucket
#: What the original adds to the score of a masked key. It shows only where a query may see no key at all.
MASKED = -10000.0


def relative_buckets(relative: Tensor, num_buckets: int, bidirectional: bool) -> Tensor:
    """Bucket of each relative position (key - query), int64 of the same shape."""
    by_distance = torch.tensor(_buckets_by_distance(num_buckets, bidirectional), device=relative.device)
    return by_distance[relative.clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE]


@lru_cache
def _buckets_by_distance(num_buckets: int, bidirectional: bool) -> tuple[int, ...]:
    """Buckets of the relative positions -128 … 128.

    Always computed on the CPU in fp32, because a logarithm that differs in its last bit moves a bucket's edge.
    """
    relative = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1, device="cpu")
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets * (relative > 0)
        distance = relative.abs()
    else:
        offset = torch.zeros_like(relative)
        distance = (-relative).clamp_min(0)
    exact = num_buckets // 2
    logarithmic = torch.log(distance.float() / exact) / math.log(MAX_DISTANCE / exact) * (num_buckets - exact)
    far = (exact + logarithmic.clamp_min(0).long()).clamp_max(num_buckets - 1)
    return tuple((offset + torch.where(distance < exact, distance, far)).tolist())


def masked_bias(bias_BHqk: Tensor, allowed_BHqk: Tensor) -> Tensor:
    """The position bias with -inf at keys that may not be seen: what is added to the attention scores.

    Where a query may see no key at all, its bias is kept whole, lowered by 10000 as in the original, so that
    attention stays finite there.
    """
    none_allowed = ~allowed_BHqk.any(-1, keepdim=True)
    masked = bias_BHqk.masked_fill(~allowed_BHqk, -torch.inf)
    return torch.where(none_allowed, bias_BHqk + MASKED, masked).contiguous()


def per_query(mask: Tensor) -> Tensor:
    """A mask of any of the accepted shapes as bool (B, 1 or H, 1 or q, k)."""
    if mask.dim() == 2:
        mask = mask[:, None]
    if mask.dim() == 3:
        mask = mask[:, None]
    return mask.bool()


def blind_queries(mask: Tensor | None) -> Tensor | None:
    """Of a mask given per query: the queries that may see nothing, (B, q).

    Only explicit masks are asked. The original gives such queries the score 0 for every key, so zeroing them
    yields its very numbers on the padding of its own masks; otherwise nothing reads what they compute.
    """
    if mask is None or mask.dim() == 2:
        return None
    return ~per_query(mask)[:, 0].any(-1)
