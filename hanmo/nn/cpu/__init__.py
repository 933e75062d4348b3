"""The layers of torch, made faster where a CPU loses most time."""

from hanmo.nn.cpu.dropout import Dropout, draw_kept, dropout, kept_scale
from hanmo.nn.cpu.linear import Linear, lowered

__all__ = ["Dropout", "Linear", "draw_kept", "dropout", "kept_scale", "lowered"]
