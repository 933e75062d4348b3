"""Linear layers that are quick where decoding spends its time: on a CPU, in fp32, with a few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEW = 32  # rows up to which W x^T is the faster way
NARROW = 3072  # inputs up to which a single row is as well, as its two halves


class Linear(nn.Linear):
    """A linear layer; the same parameters, names and results as ``nn.Linear``, up to rounding.

    For a handful of rows the time is that of reading the weight once. BLAS reads it two to six times as fast where the
    weight is the left factor, W x^T, as where it is the right one, x W^T; but as slowly where x is a single row. The
    halves of a row are two: by W seen as twice as many rows of half the width they give four products, two of which
    are wanted. Measured with MKL on an AMD EPYC, two threads, for widths of 768 to 10240: benchmarks/decode.py shows
    what it makes of whole models.
    """

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear gives it
        rows = input.numel() // max(input.shape[-1], 1)
        plain = type(self.weight) is nn.Parameter and self.weight.dtype == input.dtype == torch.float32
        # Never in training: a checkpointed forward pass, which has no gradients, is to equal the one that has.
        decoding = not self.training and not torch.is_grad_enabled() and input.device.type == "cpu"
        if not plain or not decoding or not 0 < rows <= FEW:
            return super().forward(input)
        input_NI = input.reshape(rows, -1)
        if rows == 1:
            if self.in_features > NARROW or self.in_features % 2 or not self.weight.is_contiguous():
                return super().forward(input)
            products_O4 = torch.mm(self.weight.view(-1, self.in_features // 2), input_NI.view(2, -1).t()).view(-1, 4)
            output_NO = (products_O4[:, 0] + products_O4[:, 3])[None]
        else:
            output_NO = torch.mm(self.weight, input_NI.t()).t()
        if self.bias is not None:
            output_NO = output_NO + self.bias
        return output_NO.contiguous().view(*input.shape[:-1], -1)


def lowered(input: Tensor) -> Tensor:
    """What several linear layers read, in autocast's dtype where that is on: each would make and keep a copy of its own."""
    kind = input.device.type
    return input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
