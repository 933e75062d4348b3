"""Learn from rewards, each reply judged against others to the same prompt; needs no critic (GRPO).

Data holds the prompts; responses in it are not used. Rewards are reward models or functions of (prompts, replies).

Example: hanmo train grpo runs/sft/model data/prompts.jsonl runs/grpo rewards=[my_rewards:ends_well] group=8
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hanmo.families.base import OpenedModel
from hanmo.losses import clipped_policy_loss, group_advantages, kl_estimates, policy_statistics
from hanmo.training.data_files import DataFiles
from hanmo.training.lifecycle import Ready, Stage
from hanmo.training.rl import stage
from hanmo.training.rl.policy import Experience, PolicyTrainer
from hanmo.training.rl.rollout import Engine


@dataclass(frozen=True)
class GrpoConfig(stage.PolicyConfig):
    """Settings of GRPO (Shao et al. 2024, "DeepSeekMath"); see ``PolicyConfig`` for the others.

    Attributes:
        group: replies to each prompt. [G, replies]
        scale: divide advantages by the standard deviation of their group.
        loss: "token" counts every token alike; "reply", as first published, every reply, so that the tokens of longer
            replies count less.
    """

    out: str = "runs/grpo"
    group: int = 8
    scale: bool = True
    loss: Literal["token", "reply"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            group=(self.group >= 2, "at least 2"),
            samples=(self.samples % max(self.group, 1) == 0, f"a multiple of group={self.group}"),
        )


class GrpoTrainer(PolicyTrainer):
    """The KL penalty (k3) is part of the loss."""

    config: GrpoConfig

    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        grouped_GK = scores.view(-1, self.group)
        for one, advantage in zip(batch, group_advantages(grouped_GK, self.config.scale).flatten(), strict=True):
            one.advantages = torch.full_like(one.old, float(advantage))
        return {"undecided": (grouped_GK.std(1) == 0).float().mean().item()}  # groups that teach nothing

    def token_weights(self, length: int) -> float:
        return 1.0 if self.config.loss == "token" else 1.0 / length

    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], labels_BA: Tensor) -> Tensor:
        old, advantages = tokens["old"], tokens["advantages"]
        ones, clip = torch.ones_like(logprob_N), self.config.clip
        self.add_figures(ones, **policy_statistics(logprob_N, old, advantages, ones, clip))
        losses_N = clipped_policy_loss(logprob_N, old, advantages, ones, clip)
        return losses_N + self.beta * kl_estimates(logprob_N, tokens["reference"], "k3") if self.beta else losses_N


def build(opened: OpenedModel, config: GrpoConfig, files: DataFiles, engine: Engine | None = None) -> Ready:
    return stage.prepare_policy(opened, config, files, GrpoTrainer, engine)


STAGE = grpo = Stage("grpo", "GRPO", GrpoConfig, build, stage.RESULTS, stage.THEN)
