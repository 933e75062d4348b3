"""Faster versions of torch's dropout and linear layers for a CPU."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

LEVELS = 2**16  # of the probability: one 64-bit draw decides four elements
FEW = 32  # rows up to which W x^T is faster
NARROW = 3072  # inputs up to which this also holds for the halves of a single row


def dropout(input: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``; on a CPU with a probability in steps of 1/65536, scaled accordingly.

    On a CPU torch draws each element on one thread, which took a quarter of a Transformer-XL training step.
    """
    ours = input.device.type == "cpu" and 0 < _dropped(p) < LEVELS and not torch.compiler.is_compiling()
    if not training or not ours:
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


@functools.cache
def reads_rows_slowly() -> bool:
    """Whether this processor's BLAS takes longer for x W^T of a few rows than for W x^T: MKL on AMD's does, on Intel's not."""
    info = Path("/proc/cpuinfo")
    return torch.backends.mkl.is_available() and info.is_file() and "AuthenticAMD" in info.read_text()


class Linear(nn.Linear):
    """``nn.Linear`` with the same results up to rounding, quicker for a few rows where BLAS is slow (``reads_rows_slowly``).

    For a few rows the time is that of reading the weight. On an AMD EPYC, MKL reads it two to six times as fast for W x^T as
    for x W^T, except where x is a single row. A single row is therefore split into halves and W is seen as twice as many rows
    of half the width: two of the four products are needed. (Two threads, widths of 768 to 10240.) On an Intel Xeon
    the same takes 2.6 times as long as x W^T. benchmarks/decode.py measures whole models.
    """

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear gives it
        rows = input.numel() // max(input.shape[-1], 1)
        fp32 = type(self.weight) is nn.Parameter and self.weight.dtype == input.dtype == torch.float32
        # Never in training: the forward passes of activation checkpointing, with and without gradients, must be equal.
        decoding = not self.training and not torch.is_grad_enabled() and input.device.type == "cpu"
        if torch.compiler.is_compiling() or not fp32 or not decoding or not 0 < rows <= FEW or not reads_rows_slowly():
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
