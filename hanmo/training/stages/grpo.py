"""Learn from rewards, each reply judged against others to the same prompt; needs no critic (GRPO and its kin).

Data holds the prompts; responses in it are not used. Rewards are reward models or functions of (prompts, replies).
--preset grpo, dapo, dr_grpo, gspo and rloo are the settings of the publications.

Example: hanmo train grpo runs/sft/model data/prompts.jsonl runs/grpo rewards=[my_rewards:ends_well] group=8
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

from hanmo.errors import DivergedError
from hanmo.families.base import OpenedModel
from hanmo.losses import clipped_policy_loss, group_advantages, kl_estimates, policy_statistics, reply_means
from hanmo.rows import chunked
from hanmo.training.data_files import DataFiles
from hanmo.training.lifecycle import Ready, Stage
from hanmo.training.rl import stage
from hanmo.training.rl.policy import Experience, Judged, PolicyTrainer
from hanmo.training.rl.rollout import Engine

UNDECIDED, UNDECIDED_ROUNDS = 0.9, 3  # with more than this share of the groups undecided for so many rounds a run stops


@dataclass(frozen=True)
class GrpoConfig(stage.PolicyConfig):
    """Settings of GRPO (Shao et al. 2024, "DeepSeekMath"); see ``PolicyConfig`` for the others.

    Attributes:
        group: replies to each prompt. [G, replies]
        baseline: what a reply's reward is compared with: the mean of its group, or of the others in it
            ("leave_one_out"; Ahmadian et al. 2024, "RLOO").
        scale: divide advantages by the standard deviation of their group.
        loss: "token" counts every token alike (Yu et al. 2025, "DAPO", section 3.3); "reply", as first published, every
            reply, so that the tokens of longer replies count less; "constant" divides the sum over a reply's tokens by
            generation.max_new_tokens (Liu et al. 2025, "Dr. GRPO", section 3.2).
        ratio: the probability ratio that is clipped: each "token"'s, or its "reply"'s, a mean over tokens (Zheng et
            al. 2025, "GSPO", section 4.1).
        clip_high: how far a ratio may rise, if not by ``clip`` ("DAPO", section 3.1). [ε_high]
        mask_truncated: learn nothing from replies that reached the length limit ("DAPO", section 3.4).
        resample: how often in a round groups whose replies all score alike are drawn again, to the next prompts
            ("DAPO", section 3.2); 0: never. A run in which more than 90 % stay so for three rounds stops. [times]
    """

    out: str = "runs/grpo"
    group: int = 8
    baseline: Literal["group", "leave_one_out"] = "group"
    scale: bool = True
    loss: Literal["token", "reply", "constant"] = "token"
    ratio: Literal["token", "reply"] = "token"
    clip_high: float | None = None
    mask_truncated: bool = False
    resample: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            group=(self.group >= 2, "at least 2"),
            samples=(self.samples % max(self.group, 1) == 0, f"a multiple of group={self.group}"),
            clip_high=(self.clip_high is None or self.clip_high > 0, "above 0"),
            resample=(self.resample >= 0, "0 (off) or more"),
        )


class GrpoTrainer(PolicyTrainer):
    """The KL penalty (k3) is part of the loss."""

    config: GrpoConfig
    _redrawn_now = 0  # prompts of this round that were asked in place of others

    def decided(self, numbers: Sequence[int], judged: list[Judged]) -> list[Judged]:
        """With ``resample`` groups whose replies all score alike are replaced by groups of the next prompts."""
        wanted = seen = self.config.samples // self.group
        if not self.config.resample:
            return judged
        for left in reversed(range(self.config.resample + 1)):
            scores = [[one.score for one in group] for group in chunked(judged, self.group)]
            alike = [place for place, group in enumerate(scores) if min(group) == max(group)]
            every = sorted(gather_object([numbers[place] for place in alike]))
            if not (every and left):
                break
            # The first of all processes' groups takes the next prompt, and so on: as in one process.
            order = [every.index(numbers[place]) for place in alike]
            start = (self.round + 1) * wanted + self.redrawn
            drawn = chunked(self.judged(order, start, len(every), seen), self.group)
            for place, group in zip(alike, drawn, strict=True):
                judged[place * self.group : (place + 1) * self.group] = group
            seen += len(every)
            self.redrawn += len(every)
        self._redrawn_now = seen - wanted
        self._check_decided(len(every), wanted)
        return judged

    def _check_decided(self, undecided: int, groups: int) -> None:
        self.undecided_rounds = self.undecided_rounds + 1 if undecided > UNDECIDED * groups else 0
        if self.undecided_rounds >= UNDECIDED_ROUNDS:
            raise DivergedError(
                f"round {self.round + 1}: in {undecided} of {groups} groups all replies score alike after "
                f"resample={self.config.resample} further draws, and so it was in the {UNDECIDED_ROUNDS - 1} rounds before: "
                "there is nothing to learn from; look at the replies and their rewards in samples.jsonl, and take prompts "
                "that the model answers rightly now and then, a reward that tells its replies apart, a larger group or a "
                "higher generation.temperature, or teach it the task with hanmo train sft first"
            )

    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        grouped_GK, config = scores.view(-1, self.group), self.config
        advantages_GK = group_advantages(grouped_GK, config.scale, config.baseline == "leave_one_out")
        for one, advantage in zip(batch, advantages_GK.flatten(), strict=True):
            one.advantages = torch.full_like(one.old, float(advantage))
        undecided = (grouped_GK.std(1) == 0).float().mean().item()  # groups that teach nothing
        return {"undecided": undecided, **({"redrawn": float(self._redrawn_now)} if config.resample else {})}

    def token_weights(self, one: Experience) -> float:
        if self.config.mask_truncated and not one.sample.generation.finished:
            return 0.0
        lengths = {"token": 1, "reply": len(one.old), "constant": self.settings.max_new_tokens}
        return 1.0 / lengths[self.config.loss]

    def weights_of(self, batch: dict[str, Any]) -> Tensor:
        """What the sum of a step is divided by: its tokens that count, or all its replies."""
        return super().weights_of(batch) if self.config.loss == "token" else torch.ones(len(batch["labels"]))

    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], scored_N: Tensor) -> Tensor:
        old, advantages, config = tokens["old"], tokens["advantages"], self.config
        ones, bounds = torch.ones_like(logprob_N), (config.clip, config.clip_high)
        moved = policy_statistics(logprob_N, old, advantages, ones, *bounds)
        ratio = logprob_N, old
        if config.ratio == "reply":
            replies, width = output.logprob.shape
            ratio = reply_means(logprob_N - old, scored_N // width, replies), torch.zeros_like(old)
            of_replies = policy_statistics(*ratio, advantages, ones, *bounds)
            moved |= {name: of_replies[name] for name in ("clip_fraction", "ratio")}
        self.add_figures(ones, **moved)
        losses_N = clipped_policy_loss(*ratio, advantages, ones, *bounds)
        return losses_N + self.beta * kl_estimates(logprob_N, tokens["reference"], "k3") if self.beta else losses_N


def build(opened: OpenedModel, config: GrpoConfig, files: DataFiles, engine: Engine | None = None) -> Ready:
    return stage.prepare_policy(opened, config, files, GrpoTrainer, engine)


STAGE = grpo = Stage("grpo", "GRPO", GrpoConfig, build, stage.RESULTS, stage.THEN)
