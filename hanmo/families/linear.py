"""Linear layers that are quick where decoding spends its time: on a CPU, in fp32, with a few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEW = 32  # rows up to which W x^T is the faster way; measured, see benchmarks/RESULTS.md


class Linear(nn.Linear):
    """A linear layer; the same parameters, names and results as ``nn.Linear``, up to rounding.

    For a handful of rows the time is that of reading the weight once. BLAS reads it two to six times as fast where the
    weight is the left factor, W x^T, as where it is the right one, x W^T.
    """

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear gives it
        rows = input.numel() // max(input.shape[-1], 1)
        plain = type(self.weight) is nn.Parameter and self.weight.dtype == input.dtype == torch.float32
        # Never in training: a checkpointed forward pass, which has no gradients, is to equal the one that has.
        decoding = not self.training and not torch.is_grad_enabled() and input.device.type == "cpu"
        if not plain or not decoding or not 1 < rows <= FEW:
            return super().forward(input)
        output_NO = torch.mm(self.weight, input.reshape(rows, -1).t()).t()
        if self.bias is not None:
            output_NO = output_NO + self.bias
        return output_NO.contiguous().view(*input.shape[:-1], -1)
