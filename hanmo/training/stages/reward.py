"""Train a reward model on pairs of a better and a worse answer.

Data is JSON lines: {"prompt", "answers": [{"answer", "score"}, ...], "prefix"}, or {"prompt", "chosen", "rejected"} and
its usual variants. Start from the model that sft has made.

Example: hanmo train reward runs/sft/model data/pairs.jsonl runs/reward trained_layers=0.3
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.losses import pairwise_loss, tokenwise_loss
from hanmo.nn.row_model import ValueKind
from hanmo.report.page import Page
from hanmo.rows import unscored
from hanmo.training import pairs
from hanmo.training.config import AlignmentConfig
from hanmo.training.data_files import DataFiles
from hanmo.training.lifecycle import Ready, Run, Stage
from hanmo.training.pairs import PairTrainer, row_inputs
from hanmo.training.trainable import adapted


@dataclass(frozen=True)
class RewardConfig(AlignmentConfig):
    """Settings of a reward model; see ``AlignmentConfig`` for the others.

    Attributes:
        loss: "end" compares the values at the ends of both answers; "tokenwise", the published one, those at every
            place from the first difference on.
        margin: require the chosen answer to win by the difference of the answers' scores (loss "end" only).
        value_head: form of the value head: "linear" as published, or "mlp".
        published: make pairs by the published walk through the answers in their order, and with loss "tokenwise"
            compare places up to the end of the longer answer, where the shorter one has only padding.
    """

    out: str = "runs/reward"
    loss: Literal["end", "tokenwise"] = "end"
    margin: bool = False
    value_head: ValueKind = "linear"
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin and self.loss != "end":
            raise ConfigError("margin: only loss=end has a margin")


class RewardTrainer(PairTrainer):
    """The loss of a reward model on pairs of rows that feed the stop, with the accuracy and both scores of every pair."""

    def __init__(self, config: RewardConfig, *args: Any):
        super().__init__(*args)
        self.config = config

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output = model(**unscored(row_inputs(batch)))
        chosen_B, rejected_B = output.value.gather(1, batch["ends"][:, None])[:, 0].chunk(2)
        if self.config.loss == "tokenwise":
            chosen_BA, rejected_BA = output.value.chunk(2)
            ends = torch.stack(batch["ends"].chunk(2))
            end_B = (ends.amax(0) if self.config.published else ends.amin(0)) + 1
            loss_B = tokenwise_loss(chosen_BA, rejected_BA, batch["parts_at"], end_B)
        else:
            loss_B = pairwise_loss(chosen_B, rejected_B, batch["margins"] if self.config.margin else 0.0)
        return {
            "loss": loss_B,
            "accuracy": (chosen_B > rejected_B).float(),
            "chosen_score": chosen_B.detach(),
            "rejected_score": rejected_B.detach(),
        }


def build(opened: OpenedModel, config: RewardConfig, files: DataFiles) -> Ready:
    train, valid, rejects = pairs.read_pairs(files, opened, config, feed_stop=True, published=config.published)
    network = adapted(opened, config.lora, config.trained_layers, config.value_head)
    return Ready(network, partial(RewardTrainer, config), train, valid, rejects)


def figures(run: Run) -> dict[str, Any]:
    """The fields of ``PairOutcome``; the final model is evaluated once more, for the report's scores."""
    evaluates = run.trainer.eval_dataset is not None and not run.stopped
    return {**pairs.pair_figures(run), "accuracy": run.trainer.evaluate()["eval_accuracy"] if evaluates else None}


def sections(run: Run, page: Page) -> None:
    """Curves, and the distribution and calibration of scores on the validation pairs."""
    pairs.pair_curves(run, page)
    if not run.trainer.evaluated:
        return
    chosen, rejected = (run.trainer.evaluated[f"{side}_score"] for side in ("chosen", "rejected"))
    page.heading("Scores of the validation pairs")
    histograms = {"chosen": histogram(chosen, chosen, rejected), "rejected": histogram(rejected, chosen, rejected)}
    page.line_plot(histograms, x="score", y="answers", from_zero=True)
    page.heading("Calibration")
    page.paragraph(
        "Of the pairs that the model decides with a given confidence, sigmoid of the difference of the scores, "
        "the share that it decides rightly. A calibrated model has both alike."
    )
    page.table(["confidence", "pairs", "right"], [list(row) for row in calibration(chosen - rejected)])


def histogram(scores: Tensor, *everything: Tensor, bins: int = 20) -> list[tuple[float, int]]:
    """The outline (score, count) of the bars of equal bins over the range of ``everything``, from 0 to 0."""
    together = torch.cat(everything)
    counts, edges = np.histogram(scores, bins, (together.min().item(), together.max().item()))
    return list(zip(edges.repeat(2).tolist(), [0, *counts.repeat(2).tolist(), 0], strict=True))


def calibration(margins: Tensor, bins: int = 5) -> list[tuple[float, int, float]]:
    """(mean confidence, pairs, share decided correctly) of pairs by confidence, from (N,) differences of scores."""
    confidence = margins.abs().sigmoid()
    places = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    return [
        (confidence[inside].mean().item(), int(inside.sum()), (margins[inside] > 0).double().mean().item())
        for inside in (places == place for place in range(bins))
        if inside.any()
    ]


RESULTS = replace(pairs.RESULTS, figures=figures, sections=sections)
THEN = ("hanmo reward score {model} FILE", "hanmo train ppo MODEL DATA rewards=[{model}]")
STAGE = train_reward = Stage("reward", "Reward model", RewardConfig, build, RESULTS, THEN)
