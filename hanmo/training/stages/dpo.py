"""Learn from pairs of answers without a reward model (DPO, or loss=ipo).

Data is that of hanmo train reward.

Example: hanmo train dpo runs/sft/model data/pairs.jsonl runs/dpo beta=0.1 trainer.learning_rate=1e-6
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hanmo.data.rows.dataset import DUMMY_ROW, ROW_IDS
from hanmo.families.base import OpenedModel
from hanmo.losses import preference_loss
from hanmo.nn.row_model import evaluating
from hanmo.report.page import Page
from hanmo.rows import IGNORE, chunked
from hanmo.training import pairs
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            beta=(self.beta > 0, "above 0"),
            label_smoothing=(0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            sft_weight=(self.sft_weight >= 0, "0 (off) or more"),
        )


def response_logprobs(model: Callable[..., Any], batch: dict[str, Tensor], mean: bool) -> Tensor:
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
        network: Any = self.model
        home = network.device
        network.to(self.args.device)  # a run that cuts its weights leaves them on the CPU until then
        self._references = [self._reference_logprobs(network, self.train_dataset, learned=True)]
        if self.eval_dataset is not None:
            self._references.append(self._reference_logprobs(network, self.eval_dataset, learned=False))
        network.to(home)
        return super().train(*args, **kwargs)

    @torch.no_grad()
    def _reference_logprobs(self, network: Any, data: Any, learned: bool) -> Tensor:
        """(pairs, 2) fp32, on the device of the training: every process computes its share of them.

        They are computed as in the first epoch, or as in an evaluation, in the same batches: before the first update the
        policy's log-probabilities are equal, bit for bit.
        """
        args, world = self.args, self._replicas
        size = args.per_device_train_batch_size if learned else args.per_device_eval_batch_size
        order = list(self._get_train_sampler(data) if learned else self._get_eval_sampler(data))
        left_out = sorted(set(range(len(data))) - set(order), key=data.lengths.__getitem__)
        rank = args.process_index if world > 1 else 0  # ranks that share a split model all need every pair
        found = torch.full((len(data), 2), float("-inf"))
        for places in [*chunked(order, size)[rank::world], *chunked(left_out, size)[rank::world]]:
            batch = self._prepare_inputs(self.data_collator([data[place] for place in places]))
            if learned:
                sides_2B = response_logprobs(partial(self.output_as_trained, network), batch, self.config.loss == "ipo")
            else:
                with evaluating(network), self.accelerator.autocast():
                    sides_2B = response_logprobs(network, batch, self.config.loss == "ipo")
            for place, sides in zip(places, sides_2B.detach().float().cpu().view(2, -1).T, strict=True):
                if place != DUMMY_ROW and found[place].isinf().all():
                    found[place] = sides
        found = found.to(args.device)
        if world > 1:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return found

    def measured_batch(self) -> dict[str, Any]:
        batch = super().measured_batch()
        return {**batch, "references": torch.zeros(len(batch["pair_weights"]), 2)}

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
