"""Learn from pairs of answers without a reward model (DPO, or loss=ipo).

Data is that of hanmo train reward.

Example: hanmo train dpo runs/sft/model data/pairs.jsonl runs/dpo beta=0.1 trainer.learning_rate=1e-6
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hanmo.data.rows.dataset import ROW_IDS
from hanmo.families.base import OpenedModel
from hanmo.losses import preference_loss
from hanmo.report.page import Page
from hanmo.rows import IGNORE, chunked
from hanmo.training import pairs
from hanmo.training.arguments import default_settings
from hanmo.training.config import AlignmentConfig
from hanmo.training.data_files import DataFiles
from hanmo.training.lifecycle import Ready, Run, Stage
from hanmo.training.pairs import PairTrainer, row_inputs
from hanmo.training.trainable import adapted, switch_dropout_off


@dataclass(frozen=True)
class DpoConfig(AlignmentConfig):
    """Settings of DPO; see ``AlignmentConfig`` for the others.

    Attributes:
        beta: how strongly the policy is held to the model it starts from (Rafailov et al. 2023, "DPO"; Azar et al.
            2023, "IPO"). [β of DPO, τ of IPO]
        loss: "dpo", or "ipo", which separates a pair only up to a target.
        label_smoothing: the assumed share of pairs whose answers are swapped (DPO only; "cDPO"). [ε, share of pairs]
        sft_weight: weight of the chosen answer's mean negative log-likelihood, added to the loss; 0: off. [factor]
        published: make pairs by the published walk through scored answers.
    """

    out: str = "runs/dpo"
    beta: float = 0.1
    loss: Literal["dpo", "ipo"] = "dpo"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    published: bool = False

    def trainer_settings(self, has_valid: bool) -> dict[str, Any]:
        # The reference is computed in fp32: a policy in bf16 would differ from it before it has learned anything.
        return default_settings(self.trainer, has_valid, lower=False)

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
    """The loss of DPO or IPO. Dropout is off, so that policy and reference differ only by training."""

    def __init__(self, config: DpoConfig, model: nn.Module, *args: Any):
        switch_dropout_off(model)
        super().__init__(model, *args)
        self.config = config
        self._references: list[Tensor] = []  # of training and validation

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the reference is the model before training, whose log-probabilities are computed once."""
        data = (self.train_dataset, self.eval_dataset)
        self._references = [self._all_logprobs(pairs) for pairs in data if pairs is not None]
        return super().train(*args, **kwargs)

    @torch.no_grad()
    def _all_logprobs(self, data: Any) -> Tensor:
        """(pairs, 2) fp32, on the device of the training: every process computes its share of them."""
        model, batch_size = self.model, self.args.per_device_eval_batch_size
        assert isinstance(model, nn.Module)
        world = self._replicas
        rank = self.args.process_index if world > 1 else 0  # ranks that share a split model all need every pair
        order = sorted(range(len(data)), key=data.lengths.__getitem__)[rank::world]
        found = torch.zeros(len(data), 2)
        for places in chunked(order, batch_size):
            batch = self._prepare_inputs(self.data_collator([data[place] for place in places]))
            sides = response_logprobs(model, batch, self.config.loss == "ipo").chunk(2)
            found[places] = torch.stack(sides, dim=1).float().cpu()
        found = found.to(self.args.device)
        if world > 1:
            torch.distributed.all_reduce(found)
        return found

    def measured_batch(self) -> tuple[dict[str, Any], float]:
        batch, seconds = super().measured_batch()
        return {**batch, "references": torch.zeros(len(batch["pair_weights"]), 2)}, seconds

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        inputs["references"] = self._references[0][inputs[ROW_IDS].to(self.args.device)]
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluated_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return super().evaluated_batch(model, {**batch, "references": self._references[1][batch[ROW_IDS]]})

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        chosen_B, rejected_B = response_logprobs(model, batch, config.loss == "ipo").chunk(2)
        reference_chosen_B, reference_rejected_B = batch["references"].unbind(1)
        sides = (chosen_B, rejected_B, reference_chosen_B, reference_rejected_B)
        found = preference_loss(*sides, config.beta, config.loss, config.label_smoothing)
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


def build(opened: OpenedModel, config: DpoConfig, files: DataFiles) -> Ready:
    train, valid, rejects = pairs.read_pairs(files, opened, config, feed_stop=False, published=config.published)
    network = adapted(opened, config.lora, config.trained_layers)
    return Ready(network, partial(DpoTrainer, config), train, valid, rejects)


def sections(run: Run, page: Page) -> None:
    """Curves of loss, accuracy and implicit rewards."""
    pairs.pair_curves(run, page)
    rewards = {side: run.curve(f"{side}_reward") for side in ("chosen", "rejected")}
    page.line_plot(rewards, x="step", y="implicit reward")
    page.paragraph(
        "The implicit reward is beta times the log of the ratio of an answer's probabilities under the policy and under "
        "the initial model. If that of the chosen answers falls along with the rejected ones', the policy moves away "
        "from both: raise beta, or give sft_weight."
    )


SHOWN = (*pairs.RESULTS.shown, "chosen_reward", "rejected_reward")
RESULTS = replace(pairs.RESULTS, sections=sections, shown=SHOWN)
STAGE = dpo = Stage("dpo", "Learning from preferences", DpoConfig, build, RESULTS, ("hanmo chat {model}",))
