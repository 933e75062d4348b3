"""Linear layers with 8-bit weights, for inference on a CPU: a quarter of the memory of fp32 and twice its speed.

Every output has a scale of its own. Inputs are rounded to seven bits with one scale for all rows, so that a reply
depends slightly on the rest of its batch. torch's operators are deprecated, but torch._int_mm with our own rounding
takes twice as long for few rows.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.errors import UnsupportedError
from hanmo.nn.row_model import ValueHead

LEVELS = 127


class Int8Linear(nn.Module):
    """An 8-bit copy of a linear layer in any floating dtype; takes and returns fp32."""

    weight = None  # transformers' T5 reads its dtype, if it is a tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach().float()
        scale_O = (weight_OI.abs().amax(1) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        zeros_O = torch.zeros(self.out_features, dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rounded_OI = torch.quantize_per_channel(weight_OI, scale_O.double(), zeros_O, 0, torch.qint8)
        self.has_bias = linear.bias is not None
        bias_O = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(rounded_OI, bias_O)

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(input, self.packed, reduce_range=True)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight_OI, bias_O = torch.ops.quantized.linear_unpack(self.packed)
        destination[f"{prefix}weight"] = weight_OI.int_repr()
        destination[f"{prefix}scale"] = weight_OI.q_per_channel_scales()
        if bias_O is not None:
            destination[f"{prefix}bias"] = bias_O


def is_int8(network: nn.Module) -> bool:
    """Whether the network was rounded; it can then be neither trained nor saved."""
    return any(isinstance(module, Int8Linear) for module in network.modules())


def to_int8(network: nn.Module) -> None:
    """Round the linear layers of a network, a tied output head too, and convert the rest to fp32 (an embedding, norms).

    UnsupportedError if most of the weights are in layers of another kind (GPT-2's, mixtures of experts).
    """
    network.requires_grad_(False)
    holders = [module for module in network.modules() if not isinstance(module, nn.Linear | ValueHead)]
    found = [
        (holder, name) for holder in holders for name, child in holder.named_children() if isinstance(child, nn.Linear)
    ]
    inside = sum(getattr(holder, name).weight.numel() for holder, name in found)
    embeddings = sum(module.weight.numel() for module in holders if isinstance(module, nn.Embedding))
    total = sum(parameter.numel() for parameter in network.parameters())
    if 2 * inside < total - embeddings:
        raise UnsupportedError(
            f"int8: of {total - embeddings:,} weights of {type(network).__name__} only {inside:,} are in linear layers, "
            "which are what is rounded; use bf16"
        )
    for holder, name in found:
        setattr(holder, name, Int8Linear(getattr(holder, name)))
    network.float()


def count_parameters(network: Any) -> int:
    """The number of parameters of a network, 8-bit ones included, a tied output head once."""
    tied = network.get_output_embeddings() if network.config.get_text_config().tie_word_embeddings else None
    rounded = [module for module in network.modules() if isinstance(module, Int8Linear) and module is not tied]
    count = sum(parameter.numel() for parameter in network.parameters())
    return count + sum((module.in_features + module.has_bias) * module.out_features for module in rounded)
