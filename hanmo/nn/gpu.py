"""What a GPU can do, and what it must not."""

import torch


def multiplies_in_bf16() -> bool:
    """Whether there is a GPU that multiplies in bf16 as such, several times as fast as in fp32."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def leave_cudnn_attention_out() -> None:
    """Keep torch from choosing cuDNN's attention for this process.

    It makes a plan for every length of the keys, which a decoding step has one more of each time, and gradients of rows that a
    mask hides were reported as NaN where the length leaves 64 after division by 128. ``make gpu`` measures both: where it finds
    neither, this can go.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
