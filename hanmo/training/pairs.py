"""What the stages that learn from preferences and rewards share: settings, the model they start from, pairs to batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hanmo.data.rows.pairs import PairCollator, PairDataset, make_pairs
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import RowOutput, ValueKind, attach_value_head
from hanmo.records import Rejects, iter_records
from hanmo.training.config import TuningConfig
from hanmo.training.run_folder import Outcome, data_files, open_for_training, tokenising, trainer_settings
from hanmo.training.trainable import LoraSettings, add_lora, keep_top_layers
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class AlignmentConfig(TuningConfig):
    """Settings that every alignment stage has; see ``TuningConfig`` for the others.

    Attributes:
        trained_layers: how many of the last layers of every stack are trained: below 1 a share, of which whole layers
            count (0.3 of 32 is 9), from 1 on a number; null or less than one layer: all. Embeddings, norms and heads
            always are.
    """

    trained_layers: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            trained_layers=(
                self.trained_layers is None or self.trained_layers >= 0,
                "a share, a number of layers or null",
            )
        )
        if self.trained_layers is not None and self.lora:
            raise ConfigError("trained_layers and lora: LoRA already leaves all layers as they are; give one of them")


@dataclass(frozen=True)
class PairOutcome(Outcome):
    """``Outcome`` of a stage on pairs, with the share of validation pairs that come out right, before and after."""

    accuracy_before: float | None = None
    accuracy: float | None = None


def open_policy(config: AlignmentConfig) -> OpenedModel:
    """The model of the settings, in fp32 for the optimizer."""
    return open_for_training(config.model, config.size, config.original_config, config.vocab, config.rules, {})


def adapted(
    opened: OpenedModel, config: AlignmentConfig, value_head: ValueKind | None = None, critic: Any = None
) -> Any:
    """The network to train: with adapters or frozen layers as the settings say, and a value head, trained whole.

    A network that has a value head keeps it.

    Args:
        critic: a network of its own that has the value head; its layers are frozen or adapted alike.
    """
    network = opened.network
    if value_head and (critic or network).value_head is None:
        attach_value_head(critic or network, value_head)
    network.critic = critic
    if config.trained_layers is not None:
        keep_top_layers(network, config.trained_layers)
    if config.lora:
        whole = ("value_head",) if value_head else ()
        network = add_lora(network, LoraSettings(**config.lora), opened.family.lora_targets, whole)
    return network


def prepare_pairs(
    config: AlignmentConfig, closed: bool, published: bool, bars: bool
) -> tuple[Any, OpenedModel, PairDataset, PairDataset | None, Rejects]:
    """Everything that can be wrong, before anything is written: settings, model, training and validation pairs."""
    train_file, valid_file = data_files(config.data, config.valid)
    config = replace(config, trainer=trainer_settings(config.trainer, valid_file is not None))
    set_seed(config.trainer.get("seed", 42))
    opened = open_policy(config)
    rejects = Rejects()

    def pairs(file: Path) -> PairDataset:
        records = iter_records(file, rejects if config.skip_bad else None, reply="needed")
        made = make_pairs(
            tokenising(records, file.name, bars), opened.family, config.limit, config.response_limit,
            closed, published, rejects,
        )  # fmt: skip
        if not len(made):
            reasons = f"; the first: {rejects.errors[0]}" if rejects else ""
            raise ConfigError(f"{file}: no pair of answers to learn from{reasons}")
        return made

    return config, opened, pairs(train_file), pairs(valid_file) if valid_file else None, rejects


class PairTrainer(RowTrainer):
    """Trains on pairs: a stage gives the losses and figures of each pair, this trainer the step around them.

    The loss of an optimizer step is the mean over its pairs. What is measured is logged as means over pairs, and for
    the validation pairs kept in ``evaluated``, figure by figure.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train: PairDataset | None,
        valid: PairDataset | None,
        factor: Callable[[int, int], float] | None,
        callbacks: list[TrainerCallback],
    ):
        super().__init__(model, args, train, valid, factor, callbacks)
        self.data_collator = PairCollator(next((d.family.padding for d in (train, valid) if d is not None), {}))
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.evaluated: dict[str, Tensor] = {}
        self._figures: list[dict[str, Tensor]] = []

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and whatever else is measured, (B,) each; everything but the loss without a graph."""
        raise NotImplementedError

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        total = torch.stack([batch["pair_weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        figures = self.pair_figures(model, inputs)
        weights_B = inputs["pair_weights"]
        self._figures.append({"weight": weights_B, **{name: x.detach() * weights_B for name, x in figures.items()}})
        total = weights_B.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes; the division is by the pairs of all of them.
        return (figures["loss"] * weights_B).sum() / total * self.args.world_size

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._figures:
            sums = {name: sum(float(one[name].sum()) for one in self._figures) for name in self._figures[0]}
            logs |= {name: sums[name] / sums["weight"] for name in sums if name not in ("weight", "loss")}
            self._figures = []
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            figures = self.pair_figures(model, batch)
        self._columns = list(figures)
        self._evaluated.append(
            self.accelerator.gather_for_metrics(torch.stack(list(figures.values()), 1))
            .cpu()
            .double()  # some devices have no float64
        )
        return figures["loss"].mean(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        self._evaluated = []
        output = Trainer.evaluation_loop(
            self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        assert output.metrics is not None
        table = torch.cat(self._evaluated)
        self.evaluated = dict(zip(self._columns, table.unbind(1), strict=True))
        output.metrics.update({f"{metric_key_prefix}_{name}": x.mean().item() for name, x in self.evaluated.items()})
        return output


def row_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch of pairs the network takes."""
    beside = ("pair_weights", "margins", "ends", "parts_at", "row_ids", "references")
    return {name: tensor for name, tensor in batch.items() if name not in beside}


def values_at(output: RowOutput, ends: Tensor) -> Tensor:
    """The values of rows at these places, (B,)."""
    assert output.value is not None, "the network has a value head"
    return output.value.gather(1, ends[:, None])[:, 0]
