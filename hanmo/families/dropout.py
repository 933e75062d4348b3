"""Dropout that a CPU draws quickly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of the probability: one 64-bit draw decides over four elements


def dropout(input: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``; on a CPU with a probability in steps of 1/65536, and scaled by what is kept.

    On a CPU torch draws element after element on one thread, which was a quarter of a Transformer-XL training step.
    """
    dropped = round(p * LEVELS)
    if not training or input.device.type != "cpu" or not 0 < dropped < LEVELS:
        return nn.functional.dropout(input, p, training)
    words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = (words.view(torch.int16)[: input.numel()] >= dropped - LEVELS // 2).view(input.shape)
    # Only the bools are kept for the backward pass.
    return torch.where(kept, input * (LEVELS / (LEVELS - dropped)), input.new_zeros(()))


class Dropout(nn.Dropout):
    """``nn.Dropout`` by ``dropout``."""

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Dropout gives it
        return dropout(input, self.p, self.training)
