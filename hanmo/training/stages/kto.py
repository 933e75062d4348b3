"""Learn from responses with a thumb up or down, without pairs and without a reward model (KTO).

Data is JSON lines: {"prompt", "response", "label": true or false}, dialogues with a "label" for their last turn, or the
pairs of hanmo train reward (the better answer is a thumb up, each worse one a thumb down).

Example: hanmo train kto runs/sft/model data/thumbs.jsonl runs/kto beta=0.1 trainer.learning_rate=1e-6
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.data.rows.dataset import ROW_IDS
from hanmo.data.rows.thumbs import ThumbCollator, ThumbDataset, make_thumbs
from hanmo.families.base import OpenedModel
from hanmo.losses import reference_point, thumb_loss
from hanmo.records import Rejects
from hanmo.report.page import Page
from hanmo.training import pairs
from hanmo.training.config import AlignmentConfig
from hanmo.training.data_files import DataFiles, require_some
from hanmo.training.lifecycle import Ready, Run, Stage
from hanmo.training.references import ReferenceTrainer
from hanmo.training.trainable import adapted

BESIDE = ("others", "thumb_weights", "compared", "ups", "references", ROW_IDS)  # what is no input of the network


@dataclass(frozen=True)
class KtoConfig(AlignmentConfig):
    """Settings of KTO (Ethayarajh et al. 2024, "KTO"); see ``AlignmentConfig`` for the others.

    Attributes:
        beta: how strongly the policy is held to the model it starts from. [β]
        desirable_weight: weight of responses with a thumb up; where thumbs are uneven, weights times their numbers should
            be about equal. [λ_D, factor]
        undesirable_weight: weight of responses with a thumb down. [λ_U, factor]
    """

    out: str = "runs/kto"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            beta=(self.beta > 0, "above 0"),
            desirable_weight=(self.desirable_weight >= 0, "0 or more"),
            undesirable_weight=(self.undesirable_weight >= 0, "0 or more"),
        )


def response_logprobs(forward: Callable[..., Any], batch: dict[str, Any]) -> Tensor:
    """log p of each row's response, (B,)."""
    logprob_BA: Tensor = forward(**{name: x for name, x in batch.items() if name not in BESIDE}).logprob
    return logprob_BA.sum(1)


class KtoTrainer(ReferenceTrainer):
    """The loss of KTO.

    The reference point is that of the whole optimizer step: estimated from the prompts of all its batches and processes,
    each with the next record's response. So neither the batch size nor the number of processes changes the loss.
    """

    collator = ThumbCollator

    def __init__(self, config: KtoConfig, *args: Any):
        super().__init__(*args)
        self.config = config
        self._zero: Tensor | float = 0.0

    def compared_logprobs(self, forward: Callable[..., Any], batch: dict[str, Any]) -> Tensor:
        return torch.stack([response_logprobs(forward, one) for one in (batch, batch["others"])], 1)

    def weights_of(self, batch: dict[str, Any]) -> Tensor:
        weights: Tensor = batch["thumb_weights"]
        return weights

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Called with all batches of an optimizer step before the first is learned from."""
        if batch_samples:
            self._zero = self._reference_point(batch_samples)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _reference_point(self, batches: list[dict[str, Any]]) -> Tensor:
        forward, sums = partial(self.output_as_trained, self.model), torch.zeros(2, device=self.args.device)
        for given in batches:
            batch: Any = self._prepare_inputs(given)
            references = batch["references"] if "references" in batch else self._references[0][batch[ROW_IDS]]
            ratio_B = response_logprobs(forward, batch["others"]).detach() - references[:, 1]
            sums += torch.stack([(ratio_B * batch["compared"]).sum(), batch["compared"].sum()])
        if self._replicas > 1:
            sums = self.accelerator.gather(sums[None]).sum(0)
        return reference_point(*sums)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        config, weights_B, up_B = self.config, inputs["thumb_weights"], inputs["ups"]
        ratio_B = response_logprobs(model, inputs) - inputs["references"][:, 0]
        loss_B = thumb_loss(ratio_B, up_B, self._zero, config.beta, config.desirable_weight, config.undesirable_weight)
        reward_B, ups_B = config.beta * ratio_B.detach() * weights_B, up_B * weights_B
        self.add_figures(
            weights_B,
            kl=self._zero * weights_B,
            ups=ups_B,
            up_reward=reward_B * up_B,
            down_reward=reward_B * ~up_B,
        )
        # Gradients are averaged over processes; the division is by the examples of all of them.
        return (loss_B * weights_B).sum() / num_items_in_batch * self._replicas

    def mean_figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Rewards are means over the responses with that thumb."""
        counts = {"up_reward": sums["ups"], "down_reward": sums["count"] - sums["ups"]}
        rewards = {name: sums[name] / count for name, count in counts.items() if count}
        return {name: sums[name] / sums["count"] for name in ("kl",)} | rewards

    def evaluated_batch(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(B, 4): the log-ratio of each response, of its mismatched one, whether there is one, and whether it is a thumb up."""
        ratios_B2 = self.compared_logprobs(model, batch) - self._references[1][batch[ROW_IDS]]
        table_B4 = torch.cat([ratios_B2, batch["compared"][:, None], batch["ups"][:, None]], 1)
        return table_B4.new_zeros(()), table_B4  # the loss follows from the reference point of all batches

    def evaluation_figures(self, table: Tensor) -> dict[str, float]:
        ratio, other, compared, thumb = table.unbind(1)
        config, up = self.config, thumb > 0
        zero = reference_point((other * compared).sum(), compared.sum())
        losses = thumb_loss(ratio, up, zero, config.beta, config.desirable_weight, config.undesirable_weight)
        sides = {"up_reward": ratio[up], "down_reward": ratio[~up]}
        both = all(map(len, sides.values()))
        return {
            "loss": losses.mean().item(),
            **({"accuracy": ranked_rightly(ratio[up], ratio[~up])} if both else {}),
            "kl": zero.item(),
            **{name: config.beta * side.mean().item() for name, side in sides.items() if len(side)},
        }


def ranked_rightly(ups: Tensor, downs: Tensor) -> float:
    """The share of couples of a thumb up and a thumb down of which the former has more, equals counting half."""
    downs = downs.sort().values
    below = sum(torch.searchsorted(downs, ups, right=right).double().mean().item() for right in (False, True))
    return below / 2 / len(downs)


def build(opened: OpenedModel, config: KtoConfig, files: DataFiles) -> Ready:
    def rows(file: Path, rejects: Rejects) -> ThumbDataset:
        records = files.records(file, rejects, reply="needed")
        made = make_thumbs(records, opened.family, config.limit, config.response_limit, rejects)
        require_some(made, file, "no thumb to learn from", rejects)
        return made

    train, valid, rejects = files.read(rows)
    network = adapted(opened, config.lora, config.trained_layers)
    return Ready(network, partial(KtoTrainer, config), train, valid, rejects)


def sections(run: Run, page: Page) -> None:
    """Curves of loss, accuracy, implicit rewards and reference point."""
    page.heading("Training")
    page.line_plot({"training": run.curve("loss"), "validation": run.curve("eval_loss")}, x="step", y="loss")
    page.line_plot(
        {"validation": run.curve("eval_accuracy")}, x="step", y="share of couples ranked rightly", share=True
    )
    rewards = {f"thumbs {side}": run.curve(f"{side}_reward") for side in ("up", "down")}
    page.line_plot(rewards, x="step", y="implicit reward")
    page.line_plot({"reference point": run.curve("kl")}, x="step", y="nats a response")
    page.paragraph(
        "The implicit reward is beta times the log of the ratio of a response's probabilities under the policy and under "
        "the initial model. A couple is a thumb up and a thumb down; it is ranked rightly if the former's reward is greater. "
        "The reference point is the log-ratio of responses to prompts that are not their own: where it rises far, the policy "
        "learns what is said anywhere instead of what answers; raise beta. If the rewards of both thumbs fall, raise "
        "desirable_weight."
    )


RESULTS = replace(
    pairs.RESULTS,
    sections=sections,
    learned=(
        ("validation thumbs ranked rightly", "accuracy_before", "accuracy"),
        ("training loss", None, "train_loss"),
    ),
    shown=(*pairs.RESULTS.shown, "up_reward", "down_reward", "kl"),
    facts=("beta", "desirable_weight", "undesirable_weight"),
)
STAGE = kto = Stage("kto", "Learning from thumbs", KtoConfig, build, RESULTS, ("hanmo chat {model}",))
