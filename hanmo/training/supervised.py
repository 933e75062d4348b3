"""Shared by pretraining and fine-tuning: the final losses, and the report."""

from dataclasses import dataclass
from typing import Any

from hanmo.report.page import Page
from hanmo.training.lifecycle import Outcome, Results, Run


@dataclass(frozen=True)
class LossOutcome(Outcome):
    """``Outcome`` with the last training loss, and the validation losses before training and at the kept step."""

    train_loss: float | None = None
    eval_loss_before: float | None = None
    eval_loss: float | None = None
    kept_step: int | None = None


def loss_figures(run: Run) -> dict[str, Any]:
    """The fields of ``LossOutcome``."""
    kept, losses, evaluated = run.trainer.kept_step, run.curve("loss"), dict(run.curve("eval_loss"))
    return {
        "train_loss": losses[-1][1] if losses else None,
        "eval_loss_before": evaluated.get(0),
        "eval_loss": evaluated.get(kept),
        "kept_step": kept,
    }


def loss_sections(run: Run, page: Page) -> None:
    """Curves of losses, learning rate and gradient, and a table of the evaluations."""
    page.heading("Loss")
    page.line_plot({"training": run.curve("loss"), "validation": run.curve("eval_loss")}, x="step", y="loss")
    page.heading("Learning rate and gradient")
    page.line_plot({"learning rate": run.curve("learning_rate")}, x="step", y="learning rate", from_zero=True)
    page.line_plot({"gradient norm": run.curve("grad_norm")}, x="step", y="norm before clipping", from_zero=True)
    page.heading("Validation")
    evaluations = [entry for entry in run.entries if "eval_loss" in entry]
    page.table(["step", "epoch", "loss"], [[e["step"], e.get("epoch"), e["eval_loss"]] for e in evaluations])


RESULTS = Results(
    LossOutcome,
    loss_figures,
    loss_sections,
    learned=(("validation loss", "eval_loss_before", "eval_loss"), ("training loss", None, "train_loss")),
    shown=("loss", "eval_loss", "learning_rate"),
)
