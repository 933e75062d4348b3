"""Reward models: a network with a value head that gives the better one of two answers the higher number."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hanmo.checkpoints import save_model
from hanmo.errors import ConfigError
from hanmo.losses import pairwise_loss, tokenwise_loss
from hanmo.nn.row_model import ValueKind
from hanmo.report.page import Page
from hanmo.rows import IGNORE
from hanmo.training.callbacks import read_metrics
from hanmo.training.exclusive import exclusive_run
from hanmo.training.pairs import (
    AlignmentConfig,
    PairOutcome,
    PairTrainer,
    adapted,
    prepare_pairs,
    row_inputs,
    values_at,
)
from hanmo.training.run_folder import arguments, begin, callbacks, figures, kept_step, rate_factor
from hanmo.training.trainable import merged


@dataclass(frozen=True)
class RewardConfig(AlignmentConfig):
    """Settings of a reward model; see ``AlignmentConfig`` for the others.

    Attributes:
        loss: "end" compares the values at the ends of both answers; "tokenwise", the published one, those at every
            place from the first difference on.
        margin: the chosen answer is to win by the difference of their scores (loss "end" only).
        value_head: "linear" as published, or "mlp".
        published: as published: pairs by the walk through answers as they stand, and with loss "tokenwise" places up to
            the end of the longer answer, where the shorter one has only padding.
    """

    out: str = "runs/reward"
    loss: Literal["end", "tokenwise"] = "end"
    margin: bool = False
    value_head: ValueKind = "linear"
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin and self.loss != "end":
            raise ConfigError("margin: only loss=end knows a margin")


class RewardTrainer(PairTrainer):
    """The loss of a reward model on pairs of closed rows, with the accuracy and both scores of every pair."""

    def __init__(self, config: RewardConfig, *args: Any):
        super().__init__(*args)
        self.config = config

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Nothing is scored token by token, so that no logits are made.
        inputs = {**row_inputs(batch), "labels": torch.full_like(batch["labels"], IGNORE)}
        output = model(**inputs)
        chosen_B, rejected_B = values_at(output, batch["ends"]).chunk(2)
        if self.config.loss == "tokenwise":
            chosen_BA, rejected_BA = output.value.chunk(2)
            ends = torch.stack(batch["ends"].chunk(2))
            end_B = (ends.amax(0) if self.config.published else ends.amin(0)) + 1
            loss_B = tokenwise_loss(chosen_BA, rejected_BA, batch["parts_at"], end_B)
        else:
            loss_B = pairwise_loss(chosen_B, rejected_B, batch["margins"] if self.config.margin else 0.0)
        correct_B = (chosen_B > rejected_B).float()
        return {
            "loss": loss_B,
            "accuracy": correct_B,
            "chosen_score": chosen_B.detach(),
            "rejected_score": rejected_B.detach(),
        }


@exclusive_run
def train_reward(config: RewardConfig, resume: bool = False, show: TrainerCallback | None = None) -> PairOutcome:
    """Train a reward model; the run's folder is described in ``training/run_folder.py``.

    Raises:
        HanmoError: a setting, a file or a record is wrong, or training diverged.
    """
    start = time.monotonic()
    config, opened, pairs, valid, rejects = prepare_pairs(config, True, config.published, show is None)
    folder = Path(config.out)
    checkpoint = begin(folder, config, resume)
    if rejects:
        rejects.write(folder / "rejects.jsonl")
    fresh = valid is not None and checkpoint is None
    args = arguments(folder, {"eval_on_start": fresh, "disable_tqdm": True, **config.trainer})
    network = adapted(opened, config, config.value_head)
    extra, stop = callbacks(folder, show)
    trainer = RewardTrainer(config, network, args, pairs, valid, rate_factor(config.schedule, args, False), extra)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    entries = [entry for entry in read_metrics(folder / "metrics.jsonl") if "eval_accuracy" in entry]
    outcome = PairOutcome(
        run=str(folder),
        steps=trainer.state.global_step,
        rows=len(pairs),
        rejected=len(rejects),
        seconds=round(time.monotonic() - start, 1),
        signal=stop.signal,
        accuracy_before=entries[0]["eval_accuracy"] if entries and entries[0]["step"] == 0 else None,
        **figures(folder, kept_step(trainer)),  # type: ignore[arg-type]
    )
    if stop.signal is not None:
        return outcome
    if valid is not None:
        outcome = replace(outcome, accuracy=trainer.evaluate()["eval_accuracy"])
    if trainer.is_world_process_zero():
        save_model(replace(opened, network=merged(network)), folder / "model")
        facts = {"model": opened.source, "data": config.data, "loss": config.loss, "published": config.published}
        facts |= {name: value for name, value in asdict(outcome).items() if value is not None}
        write_reward_report(folder, opened.source, facts, trainer.evaluated)
    return replace(outcome, model=str(folder / "model"))


def write_reward_report(folder: Path, subtitle: str, facts: dict[str, Any], evaluated: dict[str, Tensor]) -> None:
    """RUN/report.html: curves, and of the validation pairs the distribution of scores and how far they can be trusted."""
    entries = read_metrics(folder / "metrics.jsonl")

    def curve(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in entries if name in entry]

    page = Page("Reward model", subtitle)
    page.facts(facts)
    page.heading("Training")
    page.line_plot({"training": curve("loss"), "validation": curve("eval_loss")}, x="step", y="loss")
    page.line_plot({"training": curve("accuracy"), "validation": curve("eval_accuracy")}, x="step", y="accuracy")
    if evaluated:
        chosen, rejected = evaluated["chosen_score"], evaluated["rejected_score"]
        page.heading("Scores of the validation pairs")
        page.line_plot(
            {name: histogram(scores, chosen, rejected) for name, scores in (("chosen", chosen), ("rejected", rejected))},
            x="score", y="answers", from_zero=True,
        )  # fmt: skip
        page.heading("Calibration")
        bins = calibration(chosen - rejected)
        page.paragraph(
            "Of the pairs that the model decides with a given confidence, sigmoid of the difference of the scores, "
            "the share that it decides rightly. A calibrated model has both alike."
        )
        page.table(["confidence", "pairs", "right"], [[mean, count, right] for mean, count, right in bins])
    page.heading("Settings")
    with page.details("config.yaml"):
        page.paragraph((folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(folder / "report.html")


def histogram(scores: Tensor, *everything: Tensor, bins: int = 20) -> list[tuple[float, float]]:
    """(middle, count) of equal bins over the range of all of ``everything``."""
    together = torch.cat(everything)
    low, high = together.min().item(), together.max().item()
    width = (high - low) / bins or 1.0
    places = ((scores - low) / width).long().clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins).tolist()
    return [(low + (place + 0.5) * width, float(count)) for place, count in enumerate(counts)]


def calibration(margins: Tensor, bins: int = 5) -> list[tuple[float, int, float]]:
    """(mean confidence, pairs, share decided rightly) of pairs by confidence, from 0.5 to 1, without empty bins.

    Args:
        margins: (N,) score of the better answer less that of the worse one.
    """
    confidence = margins.abs().sigmoid()
    places = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    return [
        (confidence[inside].mean().item(), int(inside.sum()), (margins[inside] > 0).double().mean().item())
        for inside in (places == place for place in range(bins))
        if inside.any()
    ]
