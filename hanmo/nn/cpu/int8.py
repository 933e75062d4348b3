"""Linear layers with 8-bit weights, for inference on a CPU: a quarter of the memory of fp32, nearly twice its speed.

Every output has a scale of its own, and so has every row of the inputs, so that no reply depends on the rest of its batch.
Processors without VNNI take seven bits of an input at once: it is read as a coarse part and what that leaves, 13 bits in
all, because the largest activations of a large model are a hundred times the others (Dettmers et al. 2022, "LLM.int8()",
section 4). torch's operators are deprecated, but torch._int_mm with our own rounding takes twice as long for few rows.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.errors import UnsupportedError
from hanmo.nn.cpu.layers import FEW
from hanmo.nn.row_model import ValueHead

LEVELS = 127  # of a weight
STEPS = 63  # of each part of an input, on either side of zero
FINER = 2 * STEPS  # steps of the second part in a step of the first
TINY = torch.finfo(torch.float32).tiny
ZERO = 64  # the operator's unsigned zero point


class Splitter:
    """Splits inputs in two parts. It keeps the last one, of few rows: queries, keys and values are made of the same input."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor, Tensor] | None = None

    def split(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Two parts of whole steps, and the size (N, 1) of a step: input = step x (coarse + fine / FINER).

        Returns:
            parts_2NI: the coarse parts, whole numbers once the operator has rounded them, and below them the fine ones.
        """
        last = self._last
        if last is not None and last[0] is input and last[1] == input._version:
            return last[2], last[3]
        input_NI = input.reshape(-1, input.shape[-1])
        # quicker than the norm with infinity
        step_N1 = input_NI.abs().amax(-1, keepdim=True).div_(STEPS).clamp_min_(TINY)
        steps_NI = input_NI / step_N1
        parts_2NI = torch.cat([steps_NI, (steps_NI - steps_NI.round()).mul_(FINER)])
        if len(input_NI) <= FEW and not input.is_inference():
            self._last = input, input._version, parts_2NI, step_N1
        return parts_2NI, step_N1


class Int8Linear(nn.Module):
    """An 8-bit copy of a linear layer in any floating dtype; takes and returns fp32.

    ``splitter``: shared by the layers of a network.
    """

    weight = None  # transformers' T5 reads its dtype, if it is a tensor

    def __init__(self, linear: nn.Linear, splitter: Splitter):
        super().__init__()
        self._splitter = splitter
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach().float()
        scale_O = (weight_OI.abs().amax(1) / LEVELS).clamp_min(TINY)
        zeros_O = torch.zeros(self.out_features, dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rounded_OI = torch.quantize_per_channel(weight_OI, scale_O.double(), zeros_O, 0, torch.qint8)
        self.bias_O = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(rounded_OI, None)

    def forward(self, input: Tensor) -> Tensor:
        parts_2NI, step_N1 = self._splitter.split(input)
        products_2NO = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            parts_2NI, 1.0, ZERO, self.packed
        )
        rows = len(step_N1)
        steps_NO = torch.add(products_2NO[:rows], products_2NO[rows:], alpha=1 / FINER)
        output_NO = steps_NO.mul_(step_N1) if self.bias_O is None else torch.addcmul(self.bias_O, steps_NO, step_N1)
        return output_NO.view(*input.shape[:-1], self.out_features)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight_OI, _ = torch.ops.quantized.linear_unpack(self.packed)
        destination[f"{prefix}weight"] = weight_OI.int_repr()
        destination[f"{prefix}scale"] = weight_OI.q_per_channel_scales()
        if self.bias_O is not None:
            destination[f"{prefix}bias"] = self.bias_O


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
    splitter = Splitter()
    for holder, name in found:
        setattr(holder, name, Int8Linear(getattr(holder, name), splitter))
    network.float()


def count_parameters(network: Any) -> int:
    """The number of parameters of a network, 8-bit ones included, a tied output head once."""
    tied = network.get_output_embeddings() if network.config.get_text_config().tie_word_embeddings else None
    rounded = [module for module in network.modules() if isinstance(module, Int8Linear) and module is not tied]
    count = sum(parameter.numel() for parameter in network.parameters())
    return count + sum((module.in_features + (module.bias_O is not None)) * module.out_features for module in rounded)
