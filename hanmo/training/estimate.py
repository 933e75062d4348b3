"""What a run will need, measured on one batch of its longest rows."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hanmo.data.rows.dataset import ROW_IDS
from hanmo.training.trainable import checkpoint_layers
from hanmo.training.trainer import RowTrainer


def estimate(trainer: RowTrainer) -> dict[str, Any]:
    """Parameters, memory in bytes and seconds of one optimizer step on this machine, without changing a weight.

    ``activations`` is what the largest batch keeps for its backward pass; work space of single operations comes on
    top. ``optimizer`` assumes two fp32 values per trained parameter, as Adam keeps.
    """
    network, args = _network(trainer), trainer.args
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    sizes = {
        "weights": _bytes(network.parameters()),
        "gradients": _bytes(trained),
        "optimizer": 8 * sum(parameter.numel() for parameter in trained),
    }
    if args.gradient_checkpointing:
        checkpoint_layers(network, selective=False)  # as the trainer will before its first step
    batch = _longest_batch(trainer)
    sizes["activations"], _ = _run(trainer, batch)
    _, seconds = _run(trainer, batch)
    steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "memory": {**sizes, "total": sum(sizes.values())},
        "steps": steps,
        "seconds_per_step": round(seconds * args.gradient_accumulation_steps, 4),
    }


def _network(trainer: RowTrainer) -> nn.Module:
    assert isinstance(trainer.model, nn.Module)
    return trainer.model


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _longest_batch(trainer: RowTrainer) -> dict[str, Tensor]:
    rows: Any = trainer.train_dataset
    places = sorted(range(len(rows)), key=rows.lengths.__getitem__)[-trainer.args.per_device_train_batch_size :]
    batch = trainer.data_collator([rows[place] for place in places])
    return {name: value.to(trainer.args.device) for name, value in batch.items() if name != ROW_IDS}


def _run(trainer: RowTrainer, batch: dict[str, Tensor]) -> tuple[int, float]:
    """Bytes kept for the backward pass, and seconds of both passes."""
    network = _network(trainer)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.train()
    start = time.perf_counter()
    autocast = torch.autocast(
        trainer.args.device.type,
        torch.bfloat16 if trainer.args.bf16 else torch.float16,
        enabled=trainer.args.bf16 or trainer.args.fp16,
    )
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        loss = network(**batch).loss
    loss.backward()
    seconds = time.perf_counter() - start + 0.0 * loss.item()  # item() waits for the device
    network.zero_grad()
    return sum(kept.values()), seconds
