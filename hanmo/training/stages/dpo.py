"""Learn from pairs of answers without a reward model (DPO; loss=ipo, hinge, robust or simpo).

Data is that of hanmo train reward.

Example: hanmo train dpo runs/sft/model data/pairs.jsonl runs/dpo beta=0.1 trainer.learning_rate=1e-6
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.losses import PreferenceKind, preference_loss
from hanmo.report.page import Page
from hanmo.rows import IGNORE
from hanmo.training import pairs
from hanmo.training.config import AlignmentConfig
from hanmo.training.data_files import DataFiles
from hanmo.training.lifecycle import Ready, Run, Stage
from hanmo.training.pairs import PairTrainer, row_inputs
from hanmo.training.references import ReferenceTrainer
from hanmo.training.trainable import adapted


@dataclass(frozen=True)
class DpoConfig(AlignmentConfig):
    """Settings of DPO; see ``AlignmentConfig`` for the others.

    Attributes:
        beta: how strongly the policy is held to the model it starts from (Rafailov et al. 2023, "DPO"; Azar et al.
            2023, "IPO"); with loss "simpo" the scale of its rewards. [β of DPO, τ of IPO]
        loss: "dpo"; "ipo", which separates a pair only up to a target; "hinge" (Zhao et al. 2023, "SLiC"), up to a margin
            of 1; "robust" (Chowdhury et al. 2024, "rDPO"), which makes up for swapped pairs; or "simpo" (Meng et al.
            2024), which has no reference and so needs less time.
        label_smoothing: the assumed share of pairs whose answers are swapped (loss "dpo", then "cDPO", and "robust").
            [ε, share of pairs]
        length_normalised: compare the means over an answer's tokens instead of sums; "ipo" and "simpo" always do.
        margin: by how much the chosen answer's reward is to be greater (loss "simpo"). [γ, reward]
        sft_weight: weight of the chosen answer's mean negative log-likelihood, added to the loss; 0: off. [factor]
        published: make pairs by the published walk through scored answers.
    """

    out: str = "runs/dpo"
    beta: float = 0.1
    loss: PreferenceKind = "dpo"
    label_smoothing: float = 0.0
    length_normalised: bool = False
    margin: float = 0.0
    sft_weight: float = 0.0
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            beta=(self.beta > 0, "above 0"),
            label_smoothing=(0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            margin=(self.margin >= 0, "0 or more"),
            sft_weight=(self.sft_weight >= 0, "0 (off) or more"),
        )
        if self.label_smoothing and self.loss not in ("dpo", "robust"):
            raise ConfigError(f"label_smoothing: only loss=dpo and loss=robust have it, not {self.loss}")
        if self.loss == "robust" and not self.label_smoothing:
            raise ConfigError("loss=robust: give label_smoothing, the share of swapped pairs; with 0 it is loss=dpo")
        if self.margin and self.loss != "simpo":
            raise ConfigError(f"margin: only loss=simpo has a margin, not {self.loss}")

    @property
    def means(self) -> bool:
        """Log-probabilities of answers are means over tokens, not sums."""
        return self.length_normalised or self.loss in ("ipo", "simpo")


def response_logprobs(model: Callable[..., Any], batch: dict[str, Tensor], mean: bool) -> Tensor:
    """log p of each row's response, (2B,): the sum over its tokens, or their mean."""
    logprob_BA = model(**row_inputs(batch)).logprob
    sums = logprob_BA.sum(1)
    return sums / (batch["labels"] != IGNORE).sum(1) if mean else sums


class DpoTrainer(ReferenceTrainer, PairTrainer):
    """The loss of DPO and its kin. Dropout is off, so that policy and reference differ only by training."""

    def __init__(self, config: DpoConfig, *args: Any):
        super().__init__(*args)
        self.config, self.compares = config, config.loss != "simpo"

    def compared_logprobs(self, forward: Callable[..., Any], batch: dict[str, Any]) -> Tensor:
        return response_logprobs(forward, batch, self.config.means).view(2, -1).T

    def pair_figures(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        chosen_B, rejected_B = response_logprobs(model, batch, config.means).chunk(2)
        reference_chosen_B, reference_rejected_B = batch["references"].unbind(1)
        sides = (chosen_B, rejected_B, reference_chosen_B, reference_rejected_B)
        found = preference_loss(*sides, config.beta, config.loss, config.label_smoothing, config.margin)
        loss_B = found.losses
        if config.sft_weight:
            tokens_B = (batch["labels"] != IGNORE).sum(1).chunk(2)[0]
            loss_B = loss_B - config.sft_weight * (chosen_B if config.means else chosen_B / tokens_B)
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
        "the initial model (with loss=simpo, of its probability under the policy, by token). If that of the chosen answers falls along with the rejected ones', the policy moves away "
        "from both: raise beta, or give sft_weight."
    )


SHOWN = (*pairs.RESULTS.shown, "chosen_reward", "rejected_reward")
RESULTS = replace(pairs.RESULTS, sections=sections, shown=SHOWN)
STAGE = dpo = Stage("dpo", "Learning from preferences", DpoConfig, build, RESULTS, ("hanmo chat {model}",))
