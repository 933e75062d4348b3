"""Learning from pairs of answers without a reward model: DPO and IPO."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hanmo.checkpoints import save_model
from hanmo.data.rows.dataset import ROW_IDS
from hanmo.data.rows.pairs import PairCollator, PairDataset
from hanmo.losses import preference_loss
from hanmo.report.page import Page
from hanmo.rows import IGNORE
from hanmo.training.callbacks import read_metrics
from hanmo.training.exclusive import exclusive_run
from hanmo.training.pairs import AlignmentConfig, PairOutcome, PairTrainer, adapted, prepare_pairs, row_inputs
from hanmo.training.run_folder import arguments, begin, callbacks, figures, kept_step, rate_factor
from hanmo.training.trainable import merged, switch_dropout_off


@dataclass(frozen=True)
class DpoConfig(AlignmentConfig):
    """Settings of DPO; see ``AlignmentConfig`` for the others.

    Attributes:
        beta: how strongly the policy is held to the model it starts from.
        loss: "dpo", or "ipo", which does not push a pair that is far enough apart any further.
        label_smoothing: the share of pairs that are thought to be labelled the wrong way round (DPO only).
        sft_weight: of the chosen answer's likelihood, added to the loss so that it does not fall; 0 is off.
        published: pairs by the published walk through scored answers.
    """

    out: str = "runs/dpo"
    beta: float = 0.1
    loss: Literal["dpo", "ipo"] = "dpo"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            beta=(self.beta > 0, "above 0"),
            label_smoothing=(0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            sft_weight=(self.sft_weight >= 0, "0 (off) or more"),
        )


def response_logprobs(model: nn.Module, batch: dict[str, Tensor], mean: bool) -> Tensor:
    """log p of each row's response, (2B,): the sum over its tokens, or their mean."""
    logprob_BA = model(**row_inputs(batch)).logprob
    sums = logprob_BA.sum(1)
    return sums / (batch["labels"] != IGNORE).sum(1) if mean else sums


class DpoTrainer(PairTrainer):
    """The loss of DPO or IPO. The reference's log-probabilities are computed once, before the first step.

    Dropout is off: policy and reference must differ by what was learned alone.
    """

    def __init__(self, config: DpoConfig, model: nn.Module, *args: Any):
        switch_dropout_off(model)
        super().__init__(model, *args)
        self.config = config
        self._references: dict[int, Tensor] = {}

    @torch.no_grad()
    def refer(self, batch_size: int) -> None:
        """Let the model as it is now be the reference, for all pairs of training and validation."""
        model = self.model
        assert isinstance(model, nn.Module)
        for data in (self.train_dataset, self.eval_dataset):
            if data is not None:
                self._references[id(data)] = self._all_logprobs(model, data, batch_size)

    def _all_logprobs(self, model: nn.Module, data: Any, batch_size: int) -> Tensor:
        """(pairs, 2) fp32, on the device of the training: every process computes its share of them."""
        assert isinstance(data, PairDataset)
        rank, world = self.args.process_index, self.args.world_size
        order = sorted(range(len(data)), key=data.lengths.__getitem__)[rank::world]
        found = torch.zeros(len(data), 2)
        collator = PairCollator(data.family.padding)
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            batch = {
                name: tensor.to(self.args.device)
                for name, tensor in collator([data[place] for place in places]).items()
            }
            sides = response_logprobs(model, batch, self.config.loss == "ipo").chunk(2)
            found[places] = torch.stack(sides, dim=1).float().cpu()
        found = found.to(self.args.device)
        if world > 1:
            torch.distributed.all_reduce(found)
        return found

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        inputs["references"] = self._references_of(self.train_dataset, inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        inputs["references"] = self._references_of(self.eval_dataset, inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _references_of(self, data: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The batch's references (B, 2), on the training's device: a tensor on the host cannot be indexed by device ids."""
        references = self._references[id(data)]
        return references[inputs[ROW_IDS].to(references.device)]

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        chosen_B, rejected_B = response_logprobs(model, batch, config.loss == "ipo").chunk(2)
        reference_chosen_B, reference_rejected_B = batch["references"].unbind(1)
        found = preference_loss(
            chosen_B, rejected_B, reference_chosen_B, reference_rejected_B,
            config.beta, config.loss, config.label_smoothing,
        )  # fmt: skip
        loss_B = found.losses
        if config.sft_weight:
            tokens_B = (batch["labels"] != IGNORE).sum(1).chunk(2)[0]
            loss_B = loss_B - config.sft_weight * (chosen_B if config.loss == "ipo" else chosen_B / tokens_B)
        return {
            "loss": loss_B,
            "accuracy": (found.chosen_rewards > found.rejected_rewards).float(),
            "chosen_reward": found.chosen_rewards,
            "rejected_reward": found.rejected_rewards,
            "chosen_logprob": chosen_B.detach(),
        }


@exclusive_run
def dpo(config: DpoConfig, resume: bool = False, show: TrainerCallback | None = None) -> PairOutcome:
    """Train on preferences; the run's folder is described in ``training/run_folder.py``.

    Raises:
        HanmoError: a setting, a file or a record is wrong, or training diverged.
    """
    start = time.monotonic()
    config, opened, pairs, valid, rejects = prepare_pairs(config, False, config.published, show is None)
    folder = Path(config.out)
    checkpoint = begin(folder, config, resume)
    if rejects:
        rejects.write(folder / "rejects.jsonl")
    fresh = valid is not None and checkpoint is None
    args = arguments(folder, {"eval_on_start": fresh, "disable_tqdm": True, **config.trainer})
    network = adapted(opened, config)
    extra, stop = callbacks(folder, show)
    trainer = DpoTrainer(config, network, args, pairs, valid, rate_factor(config.schedule, args, False), extra)
    try:
        trainer.refer(args.per_device_eval_batch_size)
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    accuracies = [e["eval_accuracy"] for e in read_metrics(folder / "metrics.jsonl") if "eval_accuracy" in e]
    outcome = PairOutcome(
        run=str(folder),
        steps=trainer.state.global_step,
        rows=len(pairs),
        rejected=len(rejects),
        seconds=round(time.monotonic() - start, 1),
        signal=stop.signal,
        accuracy=accuracies[-1] if accuracies else None,
        **figures(folder, kept_step(trainer)),  # type: ignore[arg-type]
    )
    if stop.signal is not None:
        return outcome
    if trainer.is_world_process_zero():
        save_model(replace(opened, network=merged(network)), folder / "model")
        facts = {"model": opened.source, "data": config.data, "loss": config.loss, "published": config.published}
        facts |= {name: value for name, value in asdict(outcome).items() if value is not None}
        _write_report(folder, opened.source, facts)
    return replace(outcome, model=str(folder / "model"))


def _write_report(folder: Path, subtitle: str, facts: dict[str, Any]) -> None:
    entries = read_metrics(folder / "metrics.jsonl")

    def curve(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in entries if name in entry]

    page = Page("Learning from preferences", subtitle)
    page.facts(facts)
    page.heading("Training")
    page.line_plot({"training": curve("loss"), "validation": curve("eval_loss")}, x="step", y="loss")
    page.line_plot({"training": curve("accuracy"), "validation": curve("eval_accuracy")}, x="step", y="accuracy")
    page.line_plot(
        {"chosen": curve("chosen_reward"), "rejected": curve("rejected_reward")}, x="step", y="implicit reward"
    )
    page.paragraph(
        "The implicit reward is beta times how much likelier the policy finds an answer than the model it started from. "
        "If that of the chosen answers falls along with the rejected ones', the policy moves away from both: raise beta, "
        "or give sft_weight."
    )
    page.heading("Settings")
    with page.details("config.yaml"):
        page.paragraph((folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(folder / "report.html")
