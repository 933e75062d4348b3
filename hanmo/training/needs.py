"""What an optimizer step needs: memory and operations, found from shapes without computing anything."""

import time
from typing import Any

import torch
from torch import nn

from hanmo.nn.shapes import Shapes
from hanmo.training.trainable import checkpoint_layers, stacks
from hanmo.training.trainer import RowTrainer

SIDE = 1024  # of the matrices by which a device's speed is measured
SHARDS = 8  # processes of the second estimate


def needs(trainer: RowTrainer, shapes: Shapes, tensor_parallel: int = 1) -> dict[str, Any]:
    """Parameters, memory in bytes and seconds of one optimizer step.

    ``activations``: the most that a batch keeps besides weights and gradients, with the work space of operations.
    ``total``: the most that is in use at one time: less than the sum where activations are freed while gradients are made.
    ``sharded``: the peak of each of eight processes among which FSDP divides weights, gradients and the optimizer's state.
    ``seconds_per_step``: that of the operations at the speed of a large matrix product; a run takes longer.

    Args:
        trainer: of a network that is ``shaped``.
        tensor_parallel: processes between which the network will be cut.
    """
    network: Any = trainer.model
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    parts = {
        "weights": sum(parameter.nbytes for parameter in network.parameters()),
        "gradients": gradients,
        "optimizer": _state_bytes(trainer.args.optim) * sum(parameter.numel() for parameter in trained),
        **trainer.kept_bytes(),
    }
    if trainer.args.gradient_checkpointing:
        checkpoint_layers(network, selective=False)  # as the Trainer will before its first step
    accumulated = trainer.args.gradient_accumulation_steps
    first, later, operations = _peaks(trainer, shapes)
    kept = {name: size // tensor_parallel for name, size in parts.items()}
    activations = later - gradients
    peak = max(first, gradients) if accumulated == 1 else later
    rows: Any = trainer.get_train_dataloader()
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "memory": {
            **kept,
            "activations": activations,
            "total": sum(kept.values()) + peak - gradients,
            "sharded": sum(parts.values()) // SHARDS + activations + _gathered(network),
        },
        "steps": trainer.set_initial_training_values(trainer.args, rows)[-1],
        "operations": operations * accumulated,
        "seconds_per_step": round(operations * accumulated / _speed(trainer), 7),
    }


def _peaks(trainer: RowTrainer, shapes: Shapes) -> tuple[int, int, int]:
    """The peak of a step's first batch and of a later one, whose gradients are added to those there, and operations."""
    network: Any = trainer.model
    batch = trainer._prepare_inputs(trainer.measured_batch())
    network.train()
    peaks = []
    with shapes:
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        for _ in range(2):
            shapes.peak = shapes.live
            with trainer.accelerator.autocast():
                loss: Any = trainer.compute_loss(network, dict(batch), num_items_in_batch=items)
            loss.backward()
            del loss
            peaks.append(shapes.peak)
    network.zero_grad()
    return peaks[0], peaks[1], shapes.operations // 2


def _state_bytes(optimizer: str) -> int:
    """Bytes that an optimizer keeps for each trained parameter."""
    if "8bit" in optimizer:
        return 2
    return {"sgd": 0, "adafactor": 0, "rmsprop": 4, "adagrad": 4}.get(optimizer, 8)


def _gathered(network: nn.Module) -> int:
    """Bytes of the two largest layers that FSDP gathers: of the one that is computed and of the next."""
    layers = [layer for stack in stacks(network).values() for layer in stack]
    sizes = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
    return 2 * max(sizes, default=0)


def _speed(trainer: RowTrainer) -> float:
    """Operations a second of a matrix product on the device of a run, in its precision."""
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else torch.float32
    matrix = torch.zeros(SIDE, SIDE, device=trainer.args.device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best
