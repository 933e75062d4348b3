"""GRPO: several replies to each prompt, each judged against the others of its group (Shao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import TrainerCallback

from hanmo.losses import clipped_policy_loss, group_advantages, kl_estimates, policy_statistics
from hanmo.training.exclusive import exclusive_run
from hanmo.training.rl.policy import Experience, PolicyConfig, PolicyTrainer
from hanmo.training.rl.policy_run import PolicyOutcome, run_policy
from hanmo.training.rl.rollout import Engine


@dataclass(frozen=True)
class GrpoConfig(PolicyConfig):
    """Settings of GRPO; see ``PolicyConfig`` for the others.

    Attributes:
        group: replies to each prompt.
        scale: divide advantages by the standard deviation of the group.
        loss: "token" counts every token alike; "reply" every reply, as first published, so that the tokens of longer ones
            count less.
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
    """The KL penalty (k3) stands in the loss."""

    config: GrpoConfig

    def __init__(self, config: GrpoConfig, *args: Any):
        self.group = config.group
        super().__init__(config, *args)

    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        grouped_GK = scores.view(-1, self.group)
        for one, advantage in zip(batch, group_advantages(grouped_GK, self.config.scale).flatten(), strict=True):
            one.advantages = torch.full_like(one.old, float(advantage))
        return {"undecided": (grouped_GK.std(1) == 0).float().mean().item()}  # groups that nothing is learned from

    def token_weights(self, length: int) -> float:
        return 1.0 if self.config.loss == "token" else 1.0 / length

    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], labels_BA: Tensor) -> Tensor:
        return grpo_losses(self, logprob_N, tokens)


def grpo_losses(trainer: GrpoTrainer, logprob_N: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """Clipped policy loss and KL penalty of each token, (N,)."""
    ones, clip = torch.ones_like(logprob_N), trainer.config.clip
    losses_N = clipped_policy_loss(logprob_N, tokens["old"], tokens["advantages"], ones, clip)
    moved = policy_statistics(logprob_N, tokens["old"], tokens["advantages"], ones, clip)
    trainer.note(len(ones), **moved)
    if trainer.beta:
        losses_N = losses_N + trainer.beta * kl_estimates(logprob_N, tokens["reference"], "k3")
    return losses_N


@exclusive_run
def grpo(
    config: GrpoConfig, resume: bool = False, show: TrainerCallback | None = None, engine: Engine | None = None
) -> PolicyOutcome:
    """Train by GRPO; see ``run_policy``."""
    return run_policy("GRPO", config, GrpoTrainer, None, None, resume, show, engine)
