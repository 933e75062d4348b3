"""Linear layers that are fast for a few rows in fp32 on a CPU, where decoding spends its time."""

import torch
from torch import Tensor, nn

FEW = 32  # rows up to which W x^T is faster
NARROW = 3072  # inputs up to which it is for the halves of a single row


class Linear(nn.Linear):
    """``nn.Linear`` with the same results up to rounding.

    For a few rows the time is that of reading the weight once. BLAS reads it two to six times as fast for W x^T as for
    x W^T, except where x is a single row. A single row is therefore split into halves and W is seen as twice as many rows
    of half the width: two of the four products are needed. Measured with MKL on an AMD EPYC, two threads, widths of 768
    to 10240; benchmarks/decode.py measures whole models.
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
    """The input of several linear layers in autocast's dtype, converted once instead of by each layer."""
    kind = input.device.type
    return input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
