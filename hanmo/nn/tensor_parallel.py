"""Tensor parallelism: the terms of our plans, and additions that transformers' plans cannot express.

A network's ``_tp_plan`` maps modules to the way they are cut; transformers loads a rank's slices, runs the cut modules,
and gathers them on saving. Attention derives its number of heads from the width of its projections.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hanmo.errors import ConfigError, UnsupportedError
from hanmo.processes import process_count

VOCABULARY_ROWS = "embedding_rowwise"
OUT_HEADS = "colwise"  # outputs are cut: later modules see the rank's heads or its part of the inner width
IN_HEADS = "rowwise"  # inputs are cut: the ranks' results are summed, and the bias added once
AS_CUT = "local_params"  # the module computes with the rank's slice of its weight, which has its own entry in the plan
WHOLE_LOGITS = "colwise_gather_output"  # vocabulary rows are cut, and every rank gets all logits


def local(tensor: Tensor) -> Tensor:
    """The rank's slice of a parameter that is cut outside a cut module; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distributed(config: Any, ranks: int, device: torch.device) -> dict[str, Any]:
    """Keyword arguments with which ``from_pretrained`` gives this rank its slices; none for one rank.

    ConfigError if the number of processes differs or transformers would use another device; also see ``check_divides``.
    """
    if ranks == 1:
        return {}
    check_divides(config, ranks)
    if (processes := process_count()) != ranks:
        raise ConfigError(f"tensor parallelism over {ranks} ranks needs {ranks} processes, and there are {processes}")
    if (place := torch.accelerator.current_accelerator()) is not None and place.type != device.type:
        raise ConfigError(f"tensor parallelism computes on {place.type} where there is one; leave out --device")
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=ranks)}


def is_cut(network: Any) -> bool:
    """Whether this process holds only slices of the network."""
    return (getattr(network, "tp_size", None) or 1) > 1


def tell_widths(network: nn.Module) -> None:
    """Set the widths of linear modules to those of the whole weights: peft (0.21) reads a rank's slice otherwise."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and isinstance(module.weight, DTensor):
            module.out_features, module.in_features = module.weight.shape


@contextmanager
def each_pass_alone(network: Any) -> Iterator[None]:
    """Run a forward and backward pass of a cut network whose gradients may be accumulated over several passes.

    For weights that see only a part of the heads (Qwen3's norms of queries and keys), transformers (5.23) sums the gradient
    over the ranks after every pass and would count earlier passes again, so their gradients are put aside until the end.
    """
    plan = network.config.get_text_config().base_model_tp_plan or {}
    summed = [name for name, style in plan.items() if style == "replicated_with_grad_allreduce"]
    pattern = re.compile(
        "|".join(rf"(.*\.)?{re.escape(name).replace(re.escape('*'), '[0-9]+')}\.\w+" for name in summed)
    )
    before = {}
    for name, parameter in network.named_parameters():
        if summed and parameter.grad is not None and pattern.fullmatch(name):
            before[parameter], parameter.grad = parameter.grad, None
    yield
    for parameter, gradient in before.items():
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def writes(network: Any) -> bool:
    """Whether this process writes the network's files: every process if the network is whole, else only rank 0."""
    return not is_cut(network) or torch.distributed.get_rank() == 0


def check_divides(config: Any, ranks: int) -> None:
    """UnsupportedError, with the dimension and both numbers, unless every rank gets whole heads."""
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name, None)
        if heads is not None and heads % ranks:
            named = getattr(text, "attribute_map", {}).get(name, name)
            raise UnsupportedError(
                f"tensor parallelism over {ranks} ranks: {named}={heads} does not divide by {ranks}; "
                "every rank holds whole heads"
            )
