"""Dropout that a CPU draws quickly."""

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of the probability: one 64-bit draw decides over four elements


def dropout(input: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``; on a CPU with a probability in steps of 1/65536, scaled accordingly.

    On a CPU torch draws each element on one thread, which was a quarter of a Transformer-XL training step.
    """
    if not training or input.device.type != "cpu" or not 0 < _dropped(p) < LEVELS:
        return nn.functional.dropout(input, p, training)
    # Only the bools are kept for the backward pass.
    return torch.where(draw_kept(input.shape, p), input * kept_scale(p), input.new_zeros(()))


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """The elements that a dropout of probability p keeps, bool, on the CPU."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= _dropped(p) - LEVELS // 2).view(shape)


def kept_scale(p: float) -> float:
    """The factor of the elements that are kept."""
    return LEVELS / (LEVELS - _dropped(p))


def _dropped(p: float) -> int:
    return round(p * LEVELS)


class Dropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Dropout gives it
        return dropout(input, self.p, self.training)
