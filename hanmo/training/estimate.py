"""An estimate of what a run will need, measured on one batch of its longest rows."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hanmo.training.trainable import checkpoint_layers
from hanmo.training.trainer import RowTrainer


def estimate(trainer: RowTrainer) -> dict[str, Any]:
    """Parameters, memory in bytes and seconds of one optimizer step on this machine, without changing a weight.

    ``activations`` is what the largest batch keeps for its backward pass; work space of single operations comes on
    top. ``optimizer`` assumes two fp32 values per trained parameter, as Adam keeps. Of a policy, a round of replies is
    drawn, whose seconds are spread over its steps.
    """
    network, args = trainer.model, trainer.args
    assert isinstance(network, nn.Module)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    sizes = {
        "weights": _bytes(network.parameters()),
        "gradients": _bytes(trained),
        "optimizer": 8 * sum(parameter.numel() for parameter in trained),
    }
    batch, seconds_beside = trainer.measured_batch()
    batch = trainer._prepare_inputs(batch)
    if args.gradient_checkpointing:
        checkpoint_layers(network, selective=False)  # as the trainer will before its first step
    sizes["activations"], _ = _measure(trainer, network, batch)
    _, seconds = _measure(trainer, network, batch)
    steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "memory": {**sizes, "total": sum(sizes.values())},
        "steps": steps,
        "seconds_per_step": round(seconds * args.gradient_accumulation_steps + seconds_beside, 4),
    }


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _measure(trainer: RowTrainer, network: nn.Module, batch: dict[str, Any]) -> tuple[int, float]:
    """Bytes kept for the backward pass, and seconds of both passes."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.train()
    items = trainer._get_num_items_in_batch([batch], trainer.args.device)
    start = time.perf_counter()
    with saved_tensors_hooks(pack, lambda tensor: tensor), trainer.compute_loss_context_manager():
        loss: Any = trainer.compute_loss(network, dict(batch), num_items_in_batch=items)
    loss.backward()
    seconds = time.perf_counter() - start + 0.0 * loss.item()  # item() waits for the device
    network.zero_grad()
    return sum(kept.values()), seconds
