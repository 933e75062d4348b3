"""The relative position buckets and masks of EVA's attention."""

import math
from functools import lru_cache

import torch
from torch import Tensor

MAX_DISTANCE = 128  # distances from this one on share the last bucket
MASKED = -10000.0  # the number that the original adds to the score of a masked key


def relative_buckets(relative: Tensor, num_buckets: int, bidirectional: bool) -> Tensor:
    """Bucket of each relative position (key - query), int64 of the same shape."""
    by_distance = _buckets_by_distance(num_buckets, bidirectional, relative.device)
    return by_distance[relative.clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE]


@lru_cache
def _buckets_by_distance(num_buckets: int, bidirectional: bool, device: torch.device) -> Tensor:
    """Buckets of the positions -128 … 128, computed on the CPU: a logarithm's last bit can move a bucket's edge."""
    relative = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1, device="cpu")
    num_buckets //= 1 + bidirectional  # half of them for the keys after the query
    offset = num_buckets * (relative > 0) if bidirectional else torch.zeros_like(relative)
    distance = relative.abs() if bidirectional else (-relative).clamp_min(0)
    exact = num_buckets // 2
    logarithmic = torch.log(distance.float() / exact) / math.log(MAX_DISTANCE / exact) * (num_buckets - exact)
    far = (exact + logarithmic.clamp_min(0).long()).clamp_max(num_buckets - 1)
    return (offset + torch.where(distance < exact, distance, far)).to(device)


def masked_bias(bias_BHqk: Tensor, allowed_BHqk: Tensor) -> Tensor:
    """The position bias with -inf at masked keys; a query without keys keeps its bias, lowered by 10000 as published."""
    none_allowed = ~allowed_BHqk.any(-1, keepdim=True)
    masked = bias_BHqk.masked_fill(~allowed_BHqk, -torch.inf)
    return torch.where(none_allowed, bias_BHqk + MASKED, masked).contiguous()
