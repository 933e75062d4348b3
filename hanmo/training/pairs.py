"""Shared by the stages that learn from pairs of answers: the pairs, their loss and their report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.data.rows.pairs import PairCollator, PairDataset, make_pairs
from hanmo.families.base import OpenedModel
from hanmo.records import Rejects
from hanmo.report.page import Page
from hanmo.training.config import AlignmentConfig
from hanmo.training.data_files import DataFiles, require_some
from hanmo.training.lifecycle import Results, Run
from hanmo.training.supervised import LossOutcome, loss_figures
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class PairOutcome(LossOutcome):
    """``LossOutcome`` with the share of validation pairs that are decided correctly, before and after."""

    accuracy_before: float | None = None
    accuracy: float | None = None


def pair_figures(run: Run) -> dict[str, Any]:
    """The fields of ``PairOutcome``, before training and at the kept step."""
    evaluated = dict(run.curve("eval_accuracy"))
    figures = loss_figures(run)
    return {**figures, "accuracy_before": evaluated.get(0), "accuracy": evaluated.get(figures["kept_step"])}


def pair_curves(run: Run, page: Page) -> None:
    """Curves of loss and accuracy."""
    page.heading("Training")
    for name, y in (("loss", "loss"), ("accuracy", "share of pairs right")):
        lines = {"training": run.curve(name), "validation": run.curve(f"eval_{name}")}
        page.line_plot(lines, x="step", y=y, share=name == "accuracy")


RESULTS = Results(
    PairOutcome,
    pair_figures,
    pair_curves,
    learned=(("accuracy on validation pairs", "accuracy_before", "accuracy"), ("training loss", None, "train_loss")),
    shown=("loss", "accuracy", "eval_loss", "eval_accuracy", "learning_rate"),
    facts=("loss", "published"),
)


def read_pairs(
    files: DataFiles, opened: OpenedModel, config: AlignmentConfig, feed_stop: bool, published: bool
) -> tuple[PairDataset, PairDataset | None, Rejects]:
    """Training and validation pairs; rows feed the stop token too for ``feed_stop``; see ``preferences``."""

    def pairs(file: Path, rejects: Rejects) -> PairDataset:
        records = files.records(file, rejects, reply="needed")
        made = make_pairs(records, opened.family, config.limit, config.response_limit, feed_stop, published, rejects)
        require_some(made, file, "no pair of answers to learn from", rejects)
        return made

    return files.read(pairs)


class PairTrainer(RowTrainer):
    """The loss of an optimizer step and the logged figures are means over pairs; a stage computes those of each pair."""

    collator = PairCollator
    evaluated: dict[str, Tensor] = {}  # the figures of the validation pairs, (pairs,) each

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and the other figures of each pair, (B,) each; only the loss has a graph."""
        raise NotImplementedError

    def weights_of(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["pair_weights"]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        figures = self.pair_figures(model, inputs)
        weights_B = inputs["pair_weights"]
        self.add_figures(weights_B, **{name: x * weights_B for name, x in figures.items() if name != "loss"})
        total = weights_B.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes; the division is by the pairs of all of them.
        return (figures["loss"] * weights_B).sum() / total * self._replicas

    def evaluated_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        figures = self.pair_figures(model, batch)
        self._columns = list(figures)
        return figures["loss"].mean(), torch.stack(list(figures.values()), 1)

    def evaluation_figures(self, table: Tensor) -> dict[str, float]:
        self.evaluated = dict(zip(self._columns, table.unbind(1), strict=True))
        return {name: x.mean().item() for name, x in self.evaluated.items()}


def row_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch of pairs that is the network's input."""
    beside = ("pair_weights", "margins", "ends", "parts_at", "row_ids", "references")
    return {name: tensor for name, tensor in batch.items() if name not in beside}
